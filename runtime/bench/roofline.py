"""What the machine can do at most: the figures that all others are shares of."""

import time
from collections.abc import Callable
from functools import partial

import torch


def best(work: Callable[[], object], times: int = 5) -> float:
    """The least seconds of several tries, after one to warm up."""
    work()
    found = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - began)
    return found


def ceilings(size: int = 2048, megabytes: int = 256) -> dict[str, float]:
    """Of one thread: GB/s read, GB/s copied (read and written), GFLOP/s of products."""
    found: dict[str, float] = {}
    data = torch.ones(megabytes << 18)
    target = torch.empty_like(data)
    found["read GB/s"] = data.nbytes / best(data.sum) / 1e9
    found["copy GB/s"] = 2 * data.nbytes / best(lambda: target.copy_(data)) / 1e9
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        packed = torch.ops.mkldnn._reorder_linear_weight(b, size)
        product = partial(_linear, a, packed)
        seconds = best(product, 3)
        found[f"{name} GFLOP/s"] = 2 * size**3 / seconds / 1e9
    return found


def _linear(a: torch.Tensor, packed: torch.Tensor) -> object:
    return torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")


__all__ = ["best", "ceilings"]
