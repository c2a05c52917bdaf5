"""Define the engine seam: the protocol, its commands and their answers."""
