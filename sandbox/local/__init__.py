"""Make environments as restricted local processes."""
