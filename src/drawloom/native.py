"""C sources of ours, compiled on first use and kept by their hash."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path


class CannotCompile(Exception):
    """There is no C compiler, or it did not like the source; the message is for people."""


def cache_folder() -> Path:
    """Where drawloom keeps what it can make again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "drawloom"


def compiled(source: Path, flags: tuple[str, ...], *, own_cpu: bool = False) -> Path:
    """What a C file becomes with these flags. With `own_cpu` it is for this processor only, and
    not taken from a cache that another kind filled. Raises `CannotCompile`."""
    parts = [source.read_text(), *flags, _processor() if own_cpu else platform.machine()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    target = cache_folder() / f"{source.stem}-{digest}"
    if not target.exists():
        _compile(source, flags, target)
    return target


def _processor() -> str:
    """What kind of processor this is, its instructions included."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _compile(source: Path, flags: tuple[str, ...], target: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotCompile("there is no C compiler: apt-get install gcc libc6-dev")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / target.name
        command = [compiler, *flags, "-o", str(fresh), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CannotCompile(f"{source.name} does not compile:\n{done.stderr[-2000:]}")
        fresh.chmod(0o755)
        fresh.replace(target)


__all__ = ["CannotCompile", "cache_folder", "compiled"]
