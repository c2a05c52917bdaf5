"""`fcfs-lru`: every call on its own, as request-level servers do it; `offload-lru`: the same with
host memory behind the device.

Calls are served in order of arrival, the prefix cache evicts least recently used blocks, and an
environment is made when a call needs it (vLLM with automatic prefix caching). `offload-lru` copies
evicted blocks to host memory and back, as LMCache and vLLM's offloading connector do. An argument
bounds the calls at the engine, as in ``fcfs-lru:24``.
"""

from drawloom.runtime.scheduler.policies.request_cap import RequestLevel


class FcfsLru(RequestLevel):
    """Serve calls in order of arrival."""

    name = "fcfs-lru"


class OffloadLru(RequestLevel):
    """Serve calls in order of arrival, with host memory behind the device."""

    name = "offload-lru"
    spill = True


__all__ = ["FcfsLru", "OffloadLru"]
