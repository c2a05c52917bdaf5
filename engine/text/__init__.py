"""Turn text into tokens and back, and constrain answers by grammars."""
