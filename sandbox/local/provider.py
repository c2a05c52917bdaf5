"""Environments as restricted local processes, for hosts without Docker.

A helper builds an empty root with the host's programs in it (`isolate.c`) and runs commands there.
It needs unprivileged user namespaces or root; a memory limit needs a control group. What the kernel
refused is known by name (`LiveSandbox.lacking`); with `whole` nothing runs unless it is all there.
"""

import asyncio
import contextlib
import functools
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from drawloom.environments import Env, parse_size
from drawloom.errors import SandboxDied, SandboxError, SandboxUnavailable
from drawloom.sandbox.api.provider import (
    MAX_SNAPSHOT,
    Disk,
    Doors,
    OwnedSandbox,
    Snapshot,
    disk_at,
    doors_of,
    set_up,
    too_large,
)
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.helper.build import helper_path
from drawloom.sandbox.helper.protocol import Wire
from drawloom.sandbox.local.cgroups import Cgroup, make_cgroup
from drawloom.sandbox.local.freezer import frozen

log = logging.getLogger("drawloom.sandbox")

_DOOR, _CGROUPS, _KEPT = ".model", "cgroups", "kept"
_ID = re.compile("[a-z0-9-]{1,64}")
_TRIES = 100


class ProcessSandbox(LiveSandbox):
    """A folder and a helper process over it."""

    def __init__(self, id: str, env: Env, wire: Wire, process: asyncio.subprocess.Process) -> None:
        super().__init__(id, env, wire)
        self._process = process
        self._folder: Path | None = None
        self._cgroup = Cgroup()
        self._left: Callable[[], Awaitable[None]] | None = None
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(1 << 16):
            self._wire.feed(data)
        self._wire.end("its helper ended")

    @property
    def pid(self) -> int:
        """Of its helper, as the host sees it."""
        return self._process.pid

    async def stop(self) -> None:
        """End its processes; its folder stays."""
        if self._process.returncode is None:
            # its group: killed while it starts, its child in the namespaces may not yet be bound
            # to its parent's death, and would hold our pipe for ever
            with contextlib.suppress(ProcessLookupError):  # ended, and asyncio not yet told
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()
        await self._reader
        await self._cgroup.remove()

    async def detach(self) -> None:
        await super().detach()
        await self.stop()

    async def destroy(self) -> None:
        await super().destroy()
        if self._left is not None:
            await self._left()
        await self.stop()
        if self._folder is not None:
            await _remove(self._folder)


class ProcessProvider:
    """Implements `Provider`. Its folders live under the temporary folder, by owner. With `whole` it
    refuses to make an environment whose isolation is not complete."""

    name = "process"
    keeps_running = False
    doors: Doors | None = None

    def __init__(self, owner: str, *, whole: bool = False) -> None:
        self.host = "local"
        self._whole = whole
        base = Path(tempfile.gettempdir()) / f"drawloom-{os.getuid()}"
        base.mkdir(mode=0o711, exist_ok=True)
        if base.stat().st_uid != os.getuid():
            raise SandboxError(f"{base} belongs to somebody else")
        self._base = base / owner
        self._warned = False
        self._live: dict[str, ProcessSandbox] = {}

    async def create(self, env: Env, id: str) -> LiveSandbox:
        return await self._make(env, id, None)

    async def fork(self, env: Env, snapshot: str, id: str) -> LiveSandbox:
        kept = self._kept(snapshot) / "work"
        if not kept.is_dir():
            raise SandboxDied(f"snapshot {snapshot} is gone, and its files with it")
        return await self._make(env, id, kept)

    async def _make(self, env: Env, id: str, files: Path | None) -> LiveSandbox:
        if env.sidecars:
            raise SandboxError("Env(sidecars=…) needs containers: Runtime(sandbox='docker')")
        if env.network:
            raise SandboxError(
                "Env(network=True) needs containers, Runtime(sandbox='docker'): a local process "
                "would share this host's loopback, and every service on it"
            )
        folder = self._folder(id)
        try:
            _folder_for(folder, env.key)
            if files is None:
                (folder / "work").mkdir()
            else:
                await _copy(files, folder / "work")
            box = await self._start(env, id)
            if files is None:
                await set_up(box)
        except OSError as error:
            raise SandboxError(f"no folder for an environment: {error}") from None
        except (SandboxError, asyncio.CancelledError):
            await asyncio.shield(self.destroy(id))
            raise
        return box

    async def images(self) -> list[str] | None:
        return None

    async def disk(self) -> Disk | None:
        return disk_at(self._base.parent)

    async def written(self) -> dict[str, int]:
        folders = [path.parent for path in self._base.glob("*/about.json")]
        sizes = await asyncio.to_thread(lambda: [_size(f / "work") for f in folders])
        return {f.name: size for f, size in zip(folders, sizes, strict=True)}

    # --- snapshots ------------------------------------------------------------------------

    def _kept(self, snapshot: str) -> Path:
        return self._base / _KEPT / _name(snapshot)

    async def snapshot(self, id: str, name: str) -> Snapshot:
        work, kept = self._folder(id) / "work", self._kept(name)
        if not work.is_dir():
            raise SandboxDied(f"environment {id} is gone, and its files with it")
        key = json.loads((self._folder(id) / "about.json").read_text())["key"]
        try:
            with frozen(self._live[id].pid) if id in self._live else contextlib.nullcontext():
                size = await asyncio.to_thread(_size, work)
                if size > MAX_SNAPSHOT:
                    raise SandboxError(too_large(id, size))
                _folder_for(kept, key)
                await _copy(work, kept / "work")
        except (SandboxError, OSError, asyncio.CancelledError):
            await asyncio.shield(self.discard(name))
            raise
        return Snapshot(name, key, size)

    async def snapshots(self) -> list[OwnedSandbox]:
        return _owned(self._base / _KEPT)

    async def discard(self, snapshot: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._kept(snapshot), ignore_errors=True)
        with contextlib.suppress(OSError):
            (self._base / _KEPT).rmdir()

    # --- what lives -----------------------------------------------------------------------

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        if not (self._folder(id) / "work").is_dir():
            raise SandboxDied(f"environment {id} is gone, and its files with it")
        return await self._start(env, id)

    async def _start(self, env: Env, id: str) -> ProcessSandbox:
        folder = self._folder(id)
        memory, disk = parse_size(env.memory), parse_size(env.disk)
        command = [str(helper_path()), "--dir", str(folder / "work"), "--isolate"]
        command += ["--memory", str(memory), "--pids", str(env.pids), "--disk", str(disk)]
        if (doors := doors_of(self, env)) is not None:
            await doors.open(id, folder / "work" / _DOOR)
            command += ["--llm", _DOOR]
        cgroup = make_cgroup(f"drawloom-{id}", memory, env.cpus)
        (folder / _CGROUPS).write_text("\n".join(map(str, cgroup.folders)))
        for entry in cgroup.entries:
            command += ["--cgroup", entry]
        process = await _spawn(command)
        stdin = process.stdin
        assert stdin is not None

        async def write(data: bytes) -> None:
            stdin.write(data)
            await stdin.drain()

        box = ProcessSandbox(id, env, Wire(id, write), process)
        box._folder, box._cgroup = folder, cgroup
        if doors is not None:
            box._left = functools.partial(doors.close, id)
        self._live[id] = box
        try:
            await box._wire.hello()
        except SandboxDied:
            await box.stop()
            raise SandboxError(
                f"no environment at {folder}: its helper ended ({process.returncode}); other users "
                "must be able to reach the folder, set TMPDIR to one where they can"
            ) from None
        self._judge(box)
        return box

    def _judge(self, box: ProcessSandbox) -> None:
        missing = "; ".join(box.lacking)
        if missing and self._whole:
            raise SandboxUnavailable(
                "no Docker engine answers, and local processes are not fully isolated on this "
                f"host. Missing: {missing}. Start Docker, or accept this by name: --sandbox "
                "process, Runtime(sandbox='process')"
            )
        if self._warned:
            return
        self._warned = True
        if missing:
            log.warning("tools run as local processes that are NOT fully isolated: no %s", missing)
        else:
            why = "no Docker engine answers: " if self._whole else ""
            log.warning(
                "%stools run as isolated local processes: with this host's programs instead of "
                "their image, and without a network",
                why,
            )

    async def owned(self) -> list[OwnedSandbox]:
        return _owned(self._base)

    async def destroy(self, id: str) -> None:
        if self.doors is not None:
            await self.doors.close(id)
        if (box := self._live.pop(id, None)) is not None:
            await box.destroy()
        folder = self._folder(id)
        with contextlib.suppress(OSError):  # of an owner that was killed
            kept = (folder / _CGROUPS).read_text().splitlines()
            await Cgroup(tuple(Path(line) for line in kept)).remove()
        await _remove(folder)

    def _folder(self, id: str) -> Path:
        return self._base / _name(id)

    async def close(self) -> None:
        for box in list(self._live.values()):
            await box.stop()
        with contextlib.suppress(OSError):
            self._base.rmdir()


def _name(id: str) -> str:
    """An id that may become the name of a folder: another would lead elsewhere."""
    if not _ID.fullmatch(id) or id == _KEPT:
        raise SandboxError(f"{id!r} is no name of an environment or a snapshot")
    return id


async def _spawn(command: list[str]) -> asyncio.subprocess.Process:
    """Start a helper, in a session of its own. Cancelled meanwhile, asyncio would kill it alone and
    wait for pipes that its child in the namespaces holds: it is let start, then all are killed."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"},
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.shield(_kill(starting))
        raise


async def _kill(starting: "asyncio.Future[asyncio.subprocess.Process]") -> None:
    process = await starting
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    if process.stdout is not None:
        await process.stdout.read()
    await process.wait()


async def _remove(folder: Path) -> None:
    """What ran there was killed, and yet the kernel may need a moment to end the last of it: until
    then it may go on writing."""
    for _ in range(_TRIES):
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if not folder.exists():
            return
        await asyncio.sleep(0.02)
    log.warning("%s could not be removed", folder)


def _folder_for(folder: Path, key: str) -> None:
    """A folder that says what it is, which others may pass through but not list."""
    folder.mkdir(parents=True)
    for part in (folder.parent, folder):
        part.chmod(0o711)
    (folder / "about.json").write_text(json.dumps({"key": key, "created": time.time()}))


def _owned(base: Path) -> list[OwnedSandbox]:
    found = []
    for path in base.glob("*/about.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            about = json.loads(path.read_text())
            found.append(OwnedSandbox(path.parent.name, about["key"], about["created"]))
    return found


def _size(folder: Path) -> int:
    """Bytes on disk of all files below a folder; links are not followed."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


async def _copy(source: Path, target: Path) -> None:
    """All of a folder with owners, modes, times and links as they are; where the file system can,
    blocks are shared until one side writes. `cp`, because `shutil` follows neither of these."""
    copying = await asyncio.create_subprocess_exec(
        "cp", "-a", "--reflink=auto", "--", str(source), str(target),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, words = await copying.communicate()
    except asyncio.CancelledError:
        copying.kill()
        await copying.wait()
        raise
    if copying.returncode:
        raise SandboxError(f"{source} could not be copied: {words.decode(errors='replace')}")


__all__ = ["ProcessProvider", "ProcessSandbox"]
