"""The embedded inference engine. What the environment must say before torch loads is said here."""

import os

# spinning OpenMP threads cost 4-100x when another process wants the core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# a primitive of oneDNN for each pair of row count and weight shape, kept by oneDNN and by ideep
# under it: 0.56 MiB a pair and 1024 of them (torch 2.13), which is a slow climb of 560 MiB. 128 are
# 72 MiB and hold the few batch sizes that a load repeats; one made anew costs 0.15 ms.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
# Triton 3.10 is to change its default: said here, a kernel is the same under each
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
