"""Compile kernels ahead of time, without a GPU; for tests and benchmarks only."""
