"""Offer what users write agents with: `Runtime`, `Run`, `Chat`, branches and graphs. May import
server, execution and all below them."""
