"""Hold the Triton kernels, and how they are tuned and compiled."""
