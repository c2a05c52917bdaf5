"""Manage the KV cache: blocks, prefixes, leases, and copies between device and host memory.

`KVCache` is the interface of this package; `kv_memory` holds the tensors, and everything else is
bookkeeping without a clock, a thread or a tensor.
"""
