"""Events of a GPU's stream, and their stand-in on devices that compute at once."""

import time
from typing import Any

import torch


def use_device(device: torch.device) -> None:
    """Make a device the current one of this thread, for kernels and events."""
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)


def record_event(device: torch.device, timed: bool = False) -> Any:
    """Record an event behind everything launched so far."""
    if device.type != "cuda":
        return _DoneEvent()
    event = torch.cuda.Event(enable_timing=timed)
    event.record()
    return event


class _DoneEvent:
    """Stand in for a CUDA event on a device that computes at once."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once."""

    def elapsed_time(self, other: "_DoneEvent") -> float:
        """Return the milliseconds from this event to another."""
        return 1e3 * (other._at - self._at)


__all__ = ["record_event", "use_device"]
