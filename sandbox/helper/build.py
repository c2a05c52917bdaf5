"""Build of the helper binary: compiled once from `helper.c`, cached by its hash."""

import os
from pathlib import Path

from drawloom.compile_c import CannotCompile, compiled
from drawloom.errors import SandboxUnavailable
from drawloom.sandbox.helper.seccomp import call_header

_SOURCE = Path(__file__).with_name("helper.c")
_PARTS = ("isolate.h", "isolate.c", "memory.c")


def helper_path() -> Path:
    """Return the path of the static helper binary; compile it on first use, in a second.

    ``DRAWLOOM_HELPER`` names a ready one.

    Raises:
        SandboxUnavailable: there is no C compiler.
    """
    if ready := os.environ.get("DRAWLOOM_HELPER"):
        return Path(ready)
    try:
        parts = {name: _SOURCE.with_name(name).read_text() for name in _PARTS}
        parts["calls.h"] = call_header()
        return compiled(_SOURCE, ("-O2", "-static", "-s"), more=parts)
    except CannotCompile as error:
        raise SandboxUnavailable(
            f"tool environments need their helper, and {error} "
            "(or set DRAWLOOM_HELPER to a ready helper binary)"
        ) from None


__all__ = ["helper_path"]
