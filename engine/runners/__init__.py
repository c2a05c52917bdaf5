"""Carry out a step plan on a device: CPU, GPU, or none."""
