"""Make environments that only pass time, for tests and benchmarks."""
