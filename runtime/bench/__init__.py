"""Benchmarks: each runs its rival beside it, in the same process, one after the other."""
