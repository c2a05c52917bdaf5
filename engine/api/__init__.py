"""Define the engine seam: the protocol, its commands and answers. May import configuration,
sequences and text."""
