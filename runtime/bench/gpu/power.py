"""Joules that a GPU has used, as its driver counts them."""

import ctypes
from contextlib import suppress

_OK = 0


class Meter:
    """Read the energy counter of the first GPU by NVML.

    `nvmlDeviceGetTotalEnergyConsumption`, in millijoules; without NVML all figures are 0.
    """

    def __init__(self) -> None:
        self._nvml: ctypes.CDLL | None = None
        self._device = ctypes.c_void_p()
        with suppress(OSError, AttributeError):
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
            found = nvml.nvmlInit_v2() == _OK and (
                nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device)) == _OK
            )
            self._nvml = nvml if found else None

    def joules(self) -> float | None:
        used = ctypes.c_ulonglong()
        if self._nvml is None or (
            self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(used)) != _OK
        ):
            return None
        return used.value / 1000.0


__all__ = ["Meter"]
