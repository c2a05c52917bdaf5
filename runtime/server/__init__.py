"""The HTTP server: the wire of OpenAI, and programs behind it."""
