"""Figures of an engine on a GPU, beside the limits of that GPU."""
