"""Offer what users write agents with: `Runtime`, `Run`, `Chat`, branches and graphs. May import
execution and all below it."""
