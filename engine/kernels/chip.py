"""The chip that kernels are launched on, or compiled for: tiles are chosen by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

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


@contextmanager
def pretend(chip: int) -> Iterator[None]:
    """Launchers choose as they would on ``sm_<chip>``."""
    _asked.append(chip)
    try:
        yield
    finally:
        _asked.pop()


__all__ = ["HOPPER", "capability", "pretend", "processors"]
