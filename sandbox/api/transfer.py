"""Upload and download of files and folders, as tar archives in pieces.

An archive out of an environment is untrusted: an archive is unpacked with Python's `data` filter
(PEP 706: no absolute names, no links or names that lead out, no devices, no set-id bits) into a
folder of its own, which takes its name only when all of it is there.
"""

import asyncio
import hashlib
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from drawloom.errors import SandboxError
from drawloom.sandbox.api.primitives import PIECE, SandboxPrimitives

_SECONDS = 600.0
_MOST_FILES = 200_000


async def upload(sandbox: SandboxPrimitives, local: Path, path: str) -> None:
    """Copy a file or folder of this host to `path` in an environment. Raises `SandboxError`."""
    if not local.exists():
        raise SandboxError(f"{local} does not exist")
    target = PurePosixPath(path)
    if not target.name or target.name == "..":
        raise SandboxError(f"{path!r} does not name a file or folder")
    archive = _temp_sibling(target, "upload")
    with tempfile.TemporaryFile() as file:
        await asyncio.to_thread(_pack, file, local, target.name)
        file.seek(0)
        await _clear(sandbox, archive)
        first = True
        while (data := await asyncio.to_thread(file.read, PIECE)) or first:
            await sandbox.append(archive, data, whole=first)
            first = False
    try:
        await _tar(sandbox, "-xf", archive, "-C", str(target.parent))
    finally:
        await _clear(sandbox, archive)


def _pack(file: BinaryIO, local: Path, name: str) -> None:
    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(local, name, filter=anonymous)


async def download(sandbox: SandboxPrimitives, path: str, local: Path, limit: int) -> None:
    """Copy a file or folder out of an environment to `local`, whole or not at all.

    Args:
        local: a path that does not exist yet.
        limit: most bytes of all files together.

    Raises:
        SandboxError: it is larger, unsafe to unpack, or not there.
    """
    if local.exists() or local.is_symlink():
        raise SandboxError(f"{local} exists: download to a new name")
    source = PurePosixPath(path)
    if not source.name or source.name == "..":
        raise SandboxError(f"{path!r} does not name a file or folder")
    archive = _temp_sibling(source, "download")
    try:
        await _clear(sandbox, archive)
        await _tar(sandbox, "-cf", archive, f"--directory={source.parent}", "--", source.name)
        with tempfile.TemporaryFile() as file:
            await _fetch(sandbox, archive, file, limit)
            await asyncio.to_thread(_unpack, file, source.name, local, limit)
    finally:
        await _clear(sandbox, archive)


async def _fetch(sandbox: SandboxPrimitives, archive: str, file: BinaryIO, limit: int) -> None:
    most, at = limit + limit // 8 + (1 << 20), 0  # an archive is a little larger than its files
    while True:
        data, size = await sandbox.piece(archive, at)
        at += len(data)
        if max(size, at) > most:
            raise SandboxError(f"the archive has {size:,} bytes, and the limit is {limit:,}")
        if not data:
            return
        await asyncio.to_thread(file.write, data)


def _unpack(file: BinaryIO, name: str, local: Path, limit: int) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".drawloom-", dir=local.parent))
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            total = 0
            for count, member in enumerate(tar):
                total += member.size
                if total > limit or count >= _MOST_FILES:
                    raise SandboxError(f"{name} has more than {limit:,} bytes or too many files")
                _extract(tar, member, name, folder)
        (folder / "root").rename(local)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise SandboxError(f"what {name!r} gave is refused: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, folder: Path) -> None:
    """Unpack one member; links may lead anywhere below the downloaded folder, not out of it."""
    inner = _below(member.name, name)
    if inner or member.isdir():
        target = _below(member.linkname, name) if member.islnk() else member.linkname
        moved = member.replace(name=inner or ".", linkname=target, deep=False)
        tar.extract(moved, folder / "root", filter="data")
    elif member.isreg():
        tar.extract(member.replace(name="root", deep=False), folder, filter="data")
    else:
        raise ValueError("it is neither a file nor a folder")


async def _clear(sandbox: SandboxPrimitives, archive: str) -> None:
    """Remove an archive, or what a command put in its place; tar would wait at a pipe."""
    await sandbox.exec("rm", "-rf", "--", archive, timeout=_SECONDS)


def _below(path: str, name: str) -> str:
    first, *rest = PurePosixPath(path).parts or ("",)
    if first != name:
        raise ValueError(f"{path!r} is not below it")
    return "/".join(rest)


def _temp_sibling(path: PurePosixPath, what: str) -> str:
    """Return a name for an archive; a step that is repeated after a crash gets the same."""
    return f"{path.parent}/.{what}-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"


async def _tar(sandbox: SandboxPrimitives, *arguments: str) -> None:
    result = await sandbox.exec("tar", *arguments, timeout=_SECONDS)
    if result.code or result.timed_out:
        why = "its image has no tar" if result.code == 127 else result.text.strip()[-300:]
        raise SandboxError(f"tar {' '.join(arguments)} failed ({result.code}): {why}")


__all__ = ["download", "upload"]
