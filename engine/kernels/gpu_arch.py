"""The chip that kernels are launched on, or compiled for: tiles are chosen by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import triton
import triton.language as tl

HOPPER = 90
_asked: list[int] = []


def capability() -> int:
    """Compute capability as a number, 90 for an H100 or H200; 90 where there is no GPU."""
    return _asked[-1] if _asked else _found()


@lru_cache
def _found() -> int:
    if not torch.cuda.is_available():
        return HOPPER
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


@lru_cache
def processors() -> int:
    """Streaming multiprocessors; 132, as an H200 has, where there is no GPU."""
    if not torch.cuda.is_available():
        return 132
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def chained() -> dict[str, bool]:
    """How a kernel of a step is launched: on a Hopper while the one before it still runs, for which
    it then waits itself (`await_`), so that launching takes no time between two of them
    (programmatic dependent launch, CUDA C++ Programming Guide)."""
    if triton.knobs.runtime.interpret or capability() < HOPPER:
        return {"CHAINED": False}
    return {"CHAINED": True, "launch_pdl": True}


@triton.jit
def announce(CHAINED: tl.constexpr):
    """The next kernel may be launched, as soon as all programs of this one have come here."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_(CHAINED: tl.constexpr):
    """What the kernel before wrote is there; nothing may be read or written earlier."""
    if CHAINED:
        tl.extra.cuda.gdc_wait()


@triton.jit
def follow(CHAINED: tl.constexpr):
    """What a short kernel of a step begins with."""
    announce(CHAINED)
    await_(CHAINED)


@contextmanager
def pretend(chip: int) -> Iterator[None]:
    """Launchers choose as they would on ``sm_<chip>``."""
    _asked.append(chip)
    try:
        yield
    finally:
        _asked.pop()


__all__ = [
    "HOPPER", "announce", "await_", "capability", "chained", "follow", "pretend", "processors",
]  # fmt: skip
