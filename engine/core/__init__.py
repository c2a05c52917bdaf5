"""Plan steps and carry out commands: batch, cache and runner behind one synchronous object."""
