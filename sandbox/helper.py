"""The in-container helper as a file: compiled once from `helper.c`, kept by its hash."""

import os
from pathlib import Path

from drawloom.errors import SandboxUnavailable
from drawloom.native import CannotCompile, compiled

_SOURCE = Path(__file__).with_name("helper.c")


def helper_path() -> Path:
    """The static helper binary; compiled on first use (one second).

    ``DRAWLOOM_HELPER`` names a ready one. Raises `SandboxUnavailable` without a C compiler.
    """
    if ready := os.environ.get("DRAWLOOM_HELPER"):
        return Path(ready)
    try:
        return compiled(_SOURCE, ("-O2", "-static", "-s"))
    except CannotCompile as error:
        raise SandboxUnavailable(
            f"tool environments need their helper, and {error} "
            "(or set DRAWLOOM_HELPER to a ready helper binary)"
        ) from None


__all__ = ["helper_path"]
