"""Benchmarks for developers of the scheduler; they are not in the wheel."""
