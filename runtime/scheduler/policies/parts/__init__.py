"""Parts of the `drawloom` policy, each with a null object."""
