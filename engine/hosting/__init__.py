"""Run an engine core in a thread or in a process of its own."""
