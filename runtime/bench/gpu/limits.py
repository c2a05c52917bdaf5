"""What the machine can do at most: the figures that all others are shares of."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes a second of its memory (the better of reading and copying) and over the bus each way,
    and operations a second of a bfloat16 product."""

    memory: float
    matmul: float
    to_device: float
    to_host: float

    def shown(self) -> dict[str, float]:
        return {
            "memory GB/s": self.memory / 1e9,
            "bf16 TFLOP/s": self.matmul / 1e12,
            "host to device GB/s": self.to_device / 1e9,
            "device to host GB/s": self.to_host / 1e9,
        }


def seconds(work: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """The least that it takes, after a try to warm up."""
    best = float("inf")
    for turn in range(times + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        if turn:
            best = min(best, time.perf_counter() - began)
    return best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limits(device: torch.device) -> Limits:
    gpu = device.type == "cuda"
    count, side = (1 << 30, 8192) if gpu else (1 << 20, 256)
    source = torch.ones(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    read = source.nbytes / seconds(source.sum, device)
    copied = 2 * source.nbytes / seconds(partial(target.copy_, source), device)
    dtype = torch.bfloat16
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = 2 * side**3 / seconds(lambda: a @ b, device)
    part = source[: count // 4]
    host = torch.empty(part.shape, dtype=part.dtype, pin_memory=gpu)
    there = part.nbytes / seconds(lambda: part.copy_(host, non_blocking=True), device)
    back = part.nbytes / seconds(lambda: host.copy_(part, non_blocking=True), device)
    return Limits(max(read, copied), product, there, back)


__all__ = ["Limits", "limits", "seconds", "wait"]
