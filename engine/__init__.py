"""Embedded inference engine. Importing it sets the environment variables that torch reads."""

import os

# spinning OpenMP threads cost 4-100x when another process wants the core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN, and ideep with it, cache a primitive of 0.56 MiB for each pair of row count and weight
# shape: 1024 by default (torch 2.13), which is a slow climb to 560 MiB. 128 take 72 MiB and hold
# the few batch sizes that a load repeats; a miss costs 0.15 ms.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
# Triton 3.10 will change this default: set here, kernels are the same under each version
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
