"""Environments as restricted local processes, for hosts without Docker.

A helper builds an empty root with the host's programs in it (`isolate.c`) and runs commands there.
It needs unprivileged user namespaces or root; a memory limit needs a control group. What the kernel
refused is listed in `LiveSandbox.lacking`; with `whole` nothing runs unless isolation is complete.
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
    Gateway,
    OwnedSandbox,
    Snapshot,
    disk_usage,
    gateway_for,
    set_up,
    snapshot_too_large,
)
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.helper.build import helper_path
from drawloom.sandbox.helper.protocol import Wire
from drawloom.sandbox.local.cgroups import Cgroup, make_cgroup
from drawloom.sandbox.local.paused_processes import paused_processes

log = logging.getLogger("drawloom.sandbox")

_GATEWAY, _CGROUPS, _SNAPSHOTS = ".model", "cgroups", "kept"
_ID = re.compile("[a-z0-9-]{1,64}")
_TRIES = 100


class ProcessSandbox(LiveSandbox):
    """Drive the helper process of a folder."""

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
        """Return the process id of the helper on the host."""
        return self._process.pid

    async def stop(self) -> None:
        """End the processes of the environment; its folder stays."""
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
    """Implement `Provider` over local processes, in folders below the temporary folder.

    Args:
        owner: names the folder of everything that is made.
        whole: refuse to make an environment whose isolation is not complete.
    """

    name = "process"
    keeps_running = False
    gateway: Gateway | None = None

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
        kept = self._snapshot_folder(snapshot) / "work"
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
            sandbox = await self._start(env, id)
            if files is None:
                await set_up(sandbox)
        except OSError as error:
            raise SandboxError(f"no folder for an environment: {error}") from None
        except (SandboxError, asyncio.CancelledError):
            await asyncio.shield(self.destroy(id))
            raise
        return sandbox

    async def images(self) -> list[str] | None:
        return None

    async def disk(self) -> Disk | None:
        return disk_usage(self._base.parent)

    async def written(self) -> dict[str, int]:
        folders = [path.parent for path in self._base.glob("*/about.json")]
        sizes = await asyncio.to_thread(lambda: [_size(f / "work") for f in folders])
        return {f.name: size for f, size in zip(folders, sizes, strict=True)}

    # --- snapshots ------------------------------------------------------------------------

    def _snapshot_folder(self, snapshot: str) -> Path:
        return self._base / _SNAPSHOTS / _name(snapshot)

    async def snapshot(self, id: str, name: str) -> Snapshot:
        work, kept = self._folder(id) / "work", self._snapshot_folder(name)
        if not work.is_dir():
            raise SandboxDied(f"environment {id} is gone, and its files with it")
        key = json.loads((self._folder(id) / "about.json").read_text())["key"]
        live = self._live.get(id)
        try:
            with paused_processes(live.pid) if live else contextlib.nullcontext():
                size = await asyncio.to_thread(_size, work)
                if size > MAX_SNAPSHOT:
                    raise SandboxError(snapshot_too_large(id, size))
                _folder_for(kept, key)
                await _copy(work, kept / "work")
        except (SandboxError, OSError, asyncio.CancelledError):
            await asyncio.shield(self.discard(name))
            raise
        return Snapshot(name, key, size)

    async def snapshots(self) -> list[OwnedSandbox]:
        return _owned(self._base / _SNAPSHOTS)

    async def discard(self, snapshot: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._snapshot_folder(snapshot), ignore_errors=True)
        with contextlib.suppress(OSError):
            (self._base / _SNAPSHOTS).rmdir()

    # --- environments that exist ----------------------------------------------------------

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        if not (self._folder(id) / "work").is_dir():
            raise SandboxDied(f"environment {id} is gone, and its files with it")
        return await self._start(env, id)

    async def _start(self, env: Env, id: str) -> ProcessSandbox:
        folder = self._folder(id)
        memory, disk = parse_size(env.memory), parse_size(env.disk)
        command = [str(helper_path()), "--dir", str(folder / "work"), "--isolate"]
        command += ["--memory", str(memory), "--pids", str(env.pids), "--disk", str(disk)]
        if (gateway := gateway_for(self, env)) is not None:
            await gateway.open(id, folder / "work" / _GATEWAY)
            command += ["--llm", _GATEWAY]
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

        sandbox = ProcessSandbox(id, env, Wire(id, write), process)
        sandbox._folder, sandbox._cgroup = folder, cgroup
        if gateway is not None:
            sandbox._left = functools.partial(gateway.close, id)
        self._live[id] = sandbox
        try:
            await sandbox._wire.hello()
        except SandboxDied:
            await sandbox.stop()
            raise SandboxError(
                f"no environment at {folder}: its helper ended ({process.returncode}); other users "
                "must be able to reach the folder, set TMPDIR to one where they can"
            ) from None
        self._check_isolation(sandbox)
        return sandbox

    def _check_isolation(self, sandbox: ProcessSandbox) -> None:
        missing = "; ".join(sandbox.lacking)
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
        if self.gateway is not None:
            await self.gateway.close(id)
        if (sandbox := self._live.pop(id, None)) is not None:
            await sandbox.destroy()
        folder = self._folder(id)
        with contextlib.suppress(OSError):  # of an owner that was killed
            kept = (folder / _CGROUPS).read_text().splitlines()
            await Cgroup(tuple(Path(line) for line in kept)).remove()
        await _remove(folder)

    def _folder(self, id: str) -> Path:
        return self._base / _name(id)

    async def close(self) -> None:
        for sandbox in list(self._live.values()):
            await sandbox.stop()
        with contextlib.suppress(OSError):
            self._base.rmdir()


def _name(id: str) -> str:
    """Return an id that is safe as the name of a folder. Raises `SandboxError` for others."""
    if not _ID.fullmatch(id) or id == _SNAPSHOTS:
        raise SandboxError(f"{id!r} is no name of an environment or a snapshot")
    return id


async def _spawn(command: list[str]) -> asyncio.subprocess.Process:
    """Start a helper in a session of its own.

    Cancelled while it starts, asyncio would kill the helper alone, and wait for pipes that its
    child in the namespaces holds. So a cancelled start is completed, then all processes are killed.
    """
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
    """Remove a folder whose processes were killed; they may still write for a moment."""
    for _ in range(_TRIES):
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if not folder.exists():
            return
        await asyncio.sleep(0.02)
    log.warning("%s could not be removed", folder)


def _folder_for(folder: Path, key: str) -> None:
    """Make a folder with a description, which others may pass through but not list."""
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
    """Return the bytes on disk of all files below a folder, not following links."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


async def _copy(source: Path, target: Path) -> None:
    """Copy a folder with owners, modes, times and links as they are.

    Uses `cp`, which keeps them all and shares blocks where the file system can; `shutil` does not.
    """
    copying = await asyncio.create_subprocess_exec(
        *("cp", "-a", "--reflink=auto", "--", str(source), str(target)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, words = await copying.communicate()
    except asyncio.CancelledError:
        copying.kill()
        await copying.wait()
        raise
    if copying.returncode:
        raise SandboxError(f"{source} could not be copied: {words.decode(errors='replace')}")


__all__ = ["ProcessProvider", "ProcessSandbox"]
