"""The GPU architecture that kernels are launched on or compiled for; tiles are chosen by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import triton
import triton.language as tl

HOPPER = 90
_asked: list[int] = []


def capability() -> int:
    """Return the compute capability as a number: 90 for an H100 or H200, and without a GPU."""
    return _asked[-1] if _asked else _found()


@lru_cache
def _found() -> int:
    if not torch.cuda.is_available():
        return HOPPER
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


@lru_cache
def processors() -> int:
    """Return the number of streaming multiprocessors; without a GPU 132, as an H200 has."""
    if not torch.cuda.is_available():
        return 132
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def chained() -> dict[str, bool]:
    """Return the launch options of a kernel of a step.

    From Hopper on, a kernel is launched while its predecessor still runs and waits for it by itself
    (`await_`), which hides the launch latency between two kernels (programmatic dependent launch,
    CUDA C++ Programming Guide).
    """
    if triton.knobs.runtime.interpret or capability() < HOPPER:
        return {"CHAINED": False}
    return {"CHAINED": True, "launch_pdl": True}


@triton.jit
def announce(CHAINED: tl.constexpr):
    """Allow the launch of the next kernel, once all programs of this one have called this."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_(CHAINED: tl.constexpr):
    """Wait until the writes of the kernel before are visible; touch no memory earlier."""
    if CHAINED:
        tl.extra.cuda.gdc_wait()


@triton.jit
def follow(CHAINED: tl.constexpr):
    """Begin a short kernel of a step: `announce`, then `await_`."""
    announce(CHAINED)
    await_(CHAINED)


@contextmanager
def pretend(chip: int) -> Iterator[None]:
    """Make launchers choose tiles as they would on ``sm_<chip>``."""
    _asked.append(chip)
    try:
        yield
    finally:
        _asked.pop()


__all__ = [
    "HOPPER",
    "announce",
    "await_",
    "capability",
    "chained",
    "follow",
    "pretend",
    "processors",
]
