"""The sandbox seam: providers make environments, environments run commands."""

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drawloom.environments import Env, ExecResult, ServiceState
from drawloom.errors import SandboxDied, SandboxError
from drawloom.sandbox.verbs import PIECE, Verbs
from drawloom.sandbox.wire import Reply, Wire

WORK = "/work"
LABEL = "drawloom"
KEPT = f"{LABEL}-snapshot"
MAX_SNAPSHOT = 2 << 30


@dataclass(frozen=True, slots=True)
class OwnedSandbox:
    """An environment, or a snapshot of one, that exists on a host, whoever remembers it."""

    id: str
    key: str
    created: float


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that a host's environments are on, in bytes."""

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of an environment as they were: what `fork` begins with. `size` in bytes, of what
    was written since the image."""

    id: str
    key: str
    size: int


class LiveSandbox(Verbs):
    """An environment with a helper in it. Implements `Sandbox`, and what its owner needs.

    `exec` takes a `key`: the helper keeps the result under it until `ack`, so an owner that lost
    its memory asks again and nothing runs twice.
    """

    def __init__(self, id: str, env: Env, wire: Wire) -> None:
        self._id, self.env, self._wire = id, env, wire
        self._numbers = itertools.count()
        self.touched = False
        self.setup_seconds = 0.0
        self.others: dict[str, LiveSandbox] = {}

    @property
    def id(self) -> str:
        return self._id

    @property
    def wire(self) -> Wire:
        """The line to its helper."""
        return self._wire

    @property
    def alive(self) -> bool:
        return self._wire.alive

    @property
    def isolation(self) -> int:
        """0 none, 1 partly (or a container's), 2 all namespaces; see `helper.c`."""
        return self._wire.isolation

    async def exec(
        self,
        *argv: str,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
        key: str | None = None,
    ) -> ExecResult:
        name = key or self._unique("x")
        head, args = self._command(name, argv, stdin, timeout, stream=on_output is not None)
        if key is not None and (kept := await self._kept(key, timeout)) is not None:
            return kept
        try:
            heard = on_output and _at_most(self.env.output_cap, on_output)
            reply = await self._wire.call(head, args, stdin, timeout=timeout, on_part=heard)
        except asyncio.CancelledError:
            if key is None and self.alive:
                await asyncio.shield(self._wire.tell(f"drop {name}"))
            raise
        result = _result(reply, argv[0])
        if key is None:
            await self.ack(name)
        return result

    def _command(
        self, name: str, argv: tuple[str, ...], stdin: bytes, timeout: float | None, *, stream: bool
    ) -> tuple[str, bytes]:
        if not argv or not argv[0] or any("\0" in a for a in argv):
            raise SandboxError("exec needs a command, and no NUL in its arguments")
        self.touched = True
        args = b"\0".join(a.encode() for a in argv) + b"\0"
        limit = 0 if timeout is None else max(1, int(timeout * 1000))
        head = f"exec {name} {limit} {self.env.output_cap} {len(args)} {len(stdin)} {int(stream)}"
        return head, args

    async def _kept(self, key: str, timeout: float | None) -> ExecResult | None:
        """The result of an exec that an earlier owner started, when it ends; None if none did."""
        reply = await self._wire.call(f"result {key}", timeout=timeout)
        return None if reply.kind == "missing" else _result(reply, key)

    async def ack(self, key: str) -> None:
        """The result is safe elsewhere; the helper may forget it."""
        await self._wire.tell(f"ack {key}")

    async def cancel(self, key: str) -> None:
        """Kill a running exec; its result says that it timed out."""
        await self._wire.tell(f"cancel {key}")

    async def launch(self, key: str, *argv: str) -> None:
        """Run a command without waiting for it. Raises `SandboxError` when it cannot start."""
        head, args = self._command(key, argv, b"", None, stream=False)
        if await self.peek(key) is not None:
            raise SandboxError(f"{key} is there already: stop it first")
        await self._wire.tell(head, args)
        if await self.peek(key) is None:
            raise SandboxError(f"{argv[0]} could not be started: too many processes")

    async def peek(self, key: str) -> ServiceState | None:
        """What a command has said so far, running or not yet acknowledged; else None."""
        name = key.encode()
        head = f"peek {self._unique('p')} {len(name)}"
        reply = await self._wire.call(head, name, timeout=10.0)
        if reply.kind == "missing":
            return None
        running, code, total, micros = reply.numbers
        return ServiceState(bool(running), code, reply.data, total, micros / 1e6)

    async def write(self, path: str, data: bytes) -> None:
        for at in range(0, max(1, len(data)), PIECE):
            await self.append(path, data[at : at + PIECE], whole=at == 0)

    def beside(self, name: str) -> "LiveSandbox":
        if name not in self.others:
            known = ", ".join(self.others) or "none"
            raise SandboxError(
                f"nothing is beside {self.id} by the name {name!r}; there is {known}"
            )
        return self.others[name]

    async def append(self, path: str, data: bytes, *, whole: bool = False) -> None:
        """Add to a file's end; or make `data` the whole file."""
        self.touched = True
        name = path.encode()
        head = f"write {self._unique('w')} {len(name)} {len(data)} {int(not whole)}"
        self._check(await self._wire.call(head, name, data, timeout=60.0), path)

    async def read(self, path: str, *, limit: int = 16 << 20) -> bytes:
        name = path.encode()
        head = f"read {self._unique('r')} {limit} {len(name)}"
        return self._check(await self._wire.call(head, name, timeout=60.0), path).data

    async def piece(self, path: str, offset: int) -> tuple[bytes, int]:
        """At most `PIECE` bytes of a file from an offset on, and how long it is now."""
        name = path.encode()
        head = f"piece {self._unique('r')} {PIECE} {len(name)} {offset}"
        reply = self._check(await self._wire.call(head, name, timeout=60.0), path)
        return reply.data, reply.numbers[2]

    async def ping(self) -> int:
        """Show the helper that its owner lives; how many processes run there beside it. Raises
        `SandboxDied` if it does not answer."""
        reply = await self._wire.call(f"hello {self._unique('p')}", timeout=10.0)
        return reply.numbers[1]

    def lose(self, reason: str) -> None:
        """It is not to be used any more; whoever waits, and whoever asks, is told why."""
        self._wire.end(reason)

    async def destroy(self) -> None:
        """Remove the environment and all that is in it. Harmless when it is gone already."""
        self._wire.end("it was destroyed")

    def _unique(self, kind: str) -> str:
        return f"{kind}{os.getpid()}-{next(self._numbers)}"

    @staticmethod
    def _check(reply: Reply, path: str) -> Reply:
        if reply.kind == "error":
            raise SandboxError(f"{path}: {reply.data.decode(errors='replace')}")
        return reply


def _result(reply: Reply, what: str) -> ExecResult:
    if reply.kind == "error":
        raise SandboxError(f"{what} could not be started: {reply.data.decode(errors='replace')}")
    if reply.kind != "exit":
        raise SandboxDied(f"{what}: unexpected answer {reply.kind!r}")
    code, timed_out, total, micros = reply.numbers
    return ExecResult(code, reply.data, total, micros / 1e6, bool(timed_out))


def _at_most(limit: int, heard: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """A helper tells half of the cap as it comes; one that tells more is not ours any more."""
    left = limit

    def hear(data: bytes) -> None:
        nonlocal left
        if data := data[:left]:
            left -= len(data)
            heard(data)

    return hear


class Doors(Protocol):
    """The way from environments to the model of their runtime."""

    async def open(self, box: str, path: Path, /) -> None:
        """Serve environment `box` on a Unix socket at `path`."""
        ...

    async def close(self, box: str, /) -> None:
        """Harmless when there is none."""
        ...


class Provider(Protocol):
    """Makes and finds environments on one host. `doors` are set by a runtime that has a model."""

    doors: Doors | None

    @property
    def name(self) -> str: ...

    @property
    def host(self) -> str: ...

    @property
    def keeps_running(self) -> bool:
        """Whether commands go on when their owner dies, so that an adopter gets their results.

        Files outlive an owner everywhere, for a limited time.
        """
        ...

    async def create(self, env: Env, id: str) -> LiveSandbox:
        """A new environment, ready to run commands. Raises `ImageNotFound`, `SandboxError`."""
        ...

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        """Take over an environment of a dead owner, its files as they are.

        Raises `SandboxDied` when it is gone.
        """
        ...

    async def owned(self) -> list[OwnedSandbox]:
        """The environments of this owner that exist on the host."""
        ...

    async def destroy(self, id: str) -> None:
        """Remove an environment by its id, alive or not; harmless when there is none."""
        ...

    async def images(self) -> list[str] | None:
        """The names of the images on the host; None where environments are not made of them."""
        ...

    async def disk(self) -> Disk | None:
        """What is left for environments; None where that is not known."""
        ...

    async def written(self) -> dict[str, int]:
        """Bytes that each environment of this owner has written and not removed, by its id."""
        ...

    async def snapshot(self, id: str, name: str) -> Snapshot:
        """Keep the files of environment `id` as they are, under a name, until `discard`. Its
        processes are not kept, and stand still meanwhile where the host can do that.

        Raises `SandboxDied` when it is gone, `SandboxError` when it is too large to keep.
        """
        ...

    async def fork(self, env: Env, snapshot: str, id: str) -> LiveSandbox:
        """A new environment with a snapshot's files, as often as is wanted. Nothing is set up
        again. Raises `SandboxDied` when the snapshot is gone."""
        ...

    async def snapshots(self) -> list[OwnedSandbox]:
        """The snapshots of this owner that exist on the host."""
        ...

    async def discard(self, snapshot: str) -> None:
        """Forget a snapshot; what was forked from it goes on. Harmless when there is none."""
        ...

    async def close(self) -> None: ...


def too_large(id: str, size: int) -> str:
    """Why an environment is not kept."""
    return (
        f"environment {id} has written {size >> 20:,} MiB; a snapshot takes {MAX_SNAPSHOT >> 20:,} "
        "at most: delete caches and build products first"
    )


def doors_of(provider: Provider, env: Env) -> Doors | None:
    """Where an environment's way to the model begins, if it wants one. Raises `SandboxError`."""
    if not env.llm:
        return None
    if provider.doors is None:
        raise SandboxError(
            "Env(llm=True) needs a runtime on the same host, whose model it is to find"
        )
    return provider.doors


def disk_at(folder: Path) -> Disk | None:
    """Of the file system that a folder of this host is on; None if it is not here."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return Disk(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


async def set_up(box: LiveSandbox) -> None:
    """Run an environment's setup commands. Raises `SandboxError` with the output of a failure."""
    began = time.monotonic()
    for command in box.env.setup:
        result = await box.sh(command, timeout=600.0)
        if result.code or result.timed_out:
            await box.destroy()
            raise SandboxError(f"setup {command!r} failed ({result.code}): {result.text[-500:]}")
    box.touched = False
    box.setup_seconds = time.monotonic() - began


__all__ = [
    "KEPT", "LABEL", "MAX_SNAPSHOT", "WORK", "Disk", "Doors", "LiveSandbox", "OwnedSandbox",
    "Provider", "Snapshot", "disk_at", "doors_of", "set_up", "too_large",
]  # fmt: skip
