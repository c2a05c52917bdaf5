"""Hold the bundled model and its chat template. Imports nothing."""
