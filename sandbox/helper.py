"""The in-container helper as a file: compiled once from `helper.c`, kept by its hash."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from drawloom.errors import SandboxUnavailable

_SOURCE = Path(__file__).with_name("helper.c")


def cache_folder() -> Path:
    """Where drawloom keeps what it can make again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "drawloom"


def helper_path() -> Path:
    """The static helper binary; compiled on first use (one second).

    ``DRAWLOOM_HELPER`` names a ready one. Raises `SandboxUnavailable` without a C compiler.
    """
    if ready := os.environ.get("DRAWLOOM_HELPER"):
        return Path(ready)
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    target = cache_folder() / f"helper-{digest}"
    if not target.exists():
        _compile(target)
    return target


def _compile(target: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SandboxUnavailable(
            "tool environments need a C compiler once: apt-get install gcc libc6-dev "
            "(or set DRAWLOOM_HELPER to a ready helper binary)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / "helper"
        command = [compiler, "-O2", "-static", "-s", "-o", str(fresh), str(_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SandboxUnavailable(f"the helper does not compile:\n{done.stderr[-2000:]}")
        fresh.chmod(0o755)
        fresh.replace(target)


__all__ = ["cache_folder", "helper_path"]
