"""Hold the operations that a model asks of a device, one implementation each."""
