"""Measured limits of the machine, which other figures are given as shares of."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Hold the measured limits of one device.

    Args:
        memory: bytes a second of its memory, the better of reading and copying.
        matmul: operations a second of a bfloat16 matrix product.
        to_device: bytes a second over the bus to the device.
        to_host: bytes a second over the bus to the host.
    """

    memory: float
    matmul: float
    to_device: float
    to_host: float

    def by_unit(self) -> dict[str, float]:
        """Return the limits by name and unit, as reports show them."""
        return {
            "memory GB/s": self.memory / 1e9,
            "bf16 TFLOP/s": self.matmul / 1e12,
            "host to device GB/s": self.to_device / 1e9,
            "device to host GB/s": self.to_host / 1e9,
        }


def best_seconds(
    work: Callable[[], object], device: torch.device = _CPU, *, times: int = 5
) -> float:
    """Return the least seconds that `work` takes in `times` tries, after one to warm up."""
    best = float("inf")
    for turn in range(times + 1):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        if turn:
            best = min(best, time.perf_counter() - began)
    return best


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; return at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_limits(device: torch.device) -> DeviceLimits:
    """Measure the limits of a GPU; on a CPU small sizes are used, to see that it runs."""
    gpu = device.type == "cuda"
    count, side = (1 << 30, 8192) if gpu else (1 << 20, 256)
    source = torch.ones(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    read = source.nbytes / best_seconds(source.sum, device)
    copied = 2 * source.nbytes / best_seconds(partial(target.copy_, source), device)
    dtype = torch.bfloat16
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = 2 * side**3 / best_seconds(lambda: a @ b, device)
    part = source[: count // 4]
    host = torch.empty(part.shape, dtype=part.dtype, pin_memory=gpu)
    there = part.nbytes / best_seconds(lambda: part.copy_(host, non_blocking=True), device)
    back = part.nbytes / best_seconds(lambda: host.copy_(part, non_blocking=True), device)
    return DeviceLimits(max(read, copied), product, there, back)


def thread_limits(size: int = 2048, megabytes: int = 256) -> dict[str, float]:
    """Measure one CPU thread: GB/s read, GB/s copied (read and written), GFLOP/s of products.

    Args:
        size: rows and columns of the matrices.
        megabytes: size of the array that is read and copied.
    """
    found: dict[str, float] = {}
    data = torch.ones(megabytes << 18)
    target = torch.empty_like(data)
    found["read GB/s"] = data.nbytes / best_seconds(data.sum) / 1e9
    found["copy GB/s"] = 2 * data.nbytes / best_seconds(lambda: target.copy_(data)) / 1e9
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        packed = torch.ops.mkldnn._reorder_linear_weight(b, size)
        product = partial(_linear, a, packed)
        found[f"{name} GFLOP/s"] = 2 * size**3 / best_seconds(product, times=3) / 1e9
    return found


def _linear(a: torch.Tensor, packed: torch.Tensor) -> object:
    return torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")


__all__ = ["DeviceLimits", "best_seconds", "device_limits", "synchronize", "thread_limits"]
