"""Hold the model that comes with drawloom, and its chat template."""
