"""Make environments as Docker containers."""
