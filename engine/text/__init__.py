"""Turn text into tokens and back, and hold outputs to grammars."""
