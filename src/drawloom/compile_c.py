"""C sources of ours, compiled on first use and kept by their hash.

What is kept is run, so a file is taken only from a folder that no other user can write into.
"""

import atexit
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger("drawloom")


class CannotCompile(Exception):
    """Report that there is no C compiler, or that it refused the source."""


def cache_folder() -> Path:
    """Return the folder of files that drawloom can make again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "drawloom"


def compiled(
    source: Path,
    flags: tuple[str, ...],
    *,
    own_cpu: bool = False,
    more: Mapping[str, str] | None = None,
) -> Path:
    """Compile a C file, or take it from the cache.

    Args:
        own_cpu: for this processor only, and not from a cache that another kind filled.
        more: the texts of further files by name: headers, and sources that are linked with it.

    Raises `CannotCompile`.
    """
    more = more or {}
    parts = [source.read_text(), *flags, _processor() if own_cpu else platform.machine()]
    parts += [part for item in sorted(more.items()) for part in item]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    target = _folder() / f"{source.stem}-{digest}"
    if not _is_ours(target):
        _compile(source, flags, more, target)
    return target


def _folder() -> Path:
    """Return a folder for compiled files that nobody else can put a file into."""
    shared = Path(tempfile.gettempdir()) / f"drawloom-{os.getuid()}-native"
    for folder in (cache_folder(), shared):
        if _is_private(folder):
            return folder
        _warn(folder)
    return _temporary()


@functools.cache
def _warn(folder: Path) -> None:
    log.warning("%s is open to other users: nothing that lies there is run", folder)


@functools.cache
def _temporary() -> Path:
    """Return a folder for as long as this process lives."""
    folder = tempfile.mkdtemp(prefix="drawloom-native-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _is_private(folder: Path) -> bool:
    """Make a folder for this user alone; return whether no other user can write into its path."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        if found.st_mode & 0o022:  # others could have left files there
            return False
        folder.chmod(0o700)
        return all(_is_safe(parent.stat()) for parent in folder.resolve().parents)
    except OSError:
        return False


def _is_safe(found: os.stat_result) -> bool:
    """Return whether what is in a folder can be replaced by its owner, root or us only."""
    open_to = 0o002 if found.st_gid == os.getgid() else 0o022
    closed = not found.st_mode & open_to or bool(found.st_mode & stat.S_ISVTX)
    return closed and found.st_uid in (0, os.getuid())


def _is_ours(file: Path) -> bool:
    """Return whether a file is there and was written by this user, and by nobody else."""
    try:
        found = file.lstat()
    except OSError:
        return False
    written = stat.S_ISREG(found.st_mode) and not found.st_mode & 0o022
    return written and found.st_uid == os.getuid()


def _processor() -> str:
    """Describe this processor: its kind and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _compile(source: Path, flags: tuple[str, ...], more: Mapping[str, str], target: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotCompile("there is no C compiler: apt-get install gcc libc6-dev")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / target.name
        for name, text in more.items():
            (Path(folder) / name).write_text(text)
        linked = [str(Path(folder) / name) for name in more if name.endswith(".c")]
        command = [compiler, *flags, f"-I{folder}", "-o", str(fresh), str(source), *linked]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CannotCompile(f"{source.name} does not compile:\n{done.stderr[-2000:]}")
        fresh.chmod(0o755)
        fresh.replace(target)


__all__ = ["CannotCompile", "cache_folder", "compiled"]
