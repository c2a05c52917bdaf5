"""Environments that only pass time: for the scheduler's benchmarks and tests.

Latencies and faults are the caller's; under a virtual clock they take none. Commands do nothing
and succeed, files are not kept.
"""

import asyncio
from collections.abc import Awaitable, Callable

from drawloom.environments import Command, Env, ExecResult
from drawloom.errors import SandboxDied
from drawloom.sandbox.api.provider import Disk, Doors, OwnedSandbox, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.helper.protocol import Wire


class FakeSandbox(LiveSandbox):
    """Runs nothing; it is there until it is destroyed or its provider loses it."""

    def __init__(self, id: str, env: Env, provider: "FakeProvider") -> None:
        super().__init__(id, env, Wire(id, _nowhere))
        self._provider = provider

    async def exec(
        self,
        *command: Command,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
        key: str | None = None,
    ) -> ExecResult:
        await self._wire.tell("exec")
        self.touched = True
        return ExecResult(0, b"", 0, 0.0)

    async def ping(self) -> int:
        await self._wire.tell("hello")
        return 0

    async def destroy(self) -> None:
        await self._provider.destroy(self.id)


class FakeProvider:
    """A host of such environments.

    Args:
        make: awaited for each environment: how long making it takes, and the `SandboxError` that
            it fails with, if any.
        starts: environments that are made at a time.

    Attributes:
        live: those that exist, by their ids.
        kept: the snapshots that exist.
        forked: which snapshots became which environments.
        made: how many there were.
        space: what it says of its disk.
        there: how many exist or are being made; `most`: the largest that this was.
    """

    name, host, keeps_running = "fake", "here", False
    doors: Doors | None = None
    space: Disk | None = None

    def __init__(
        self, make: Callable[[Env], Awaitable[None]] | None = None, *, starts: int = 10_000
    ) -> None:
        self._make = make
        self._starts = asyncio.Semaphore(starts)
        self.live: dict[str, FakeSandbox] = {}
        self.kept: dict[str, Snapshot] = {}
        self.forked: list[tuple[str, str]] = []
        self.made = self.there = self.most = 0

    async def create(self, env: Env, id: str) -> LiveSandbox:
        self.there += 1
        self.most = max(self.most, self.there)
        try:
            async with self._starts:
                if self._make is not None:
                    await self._make(env)
        except BaseException:
            self.there -= 1
            raise
        self.made += 1
        box = self.live[id] = FakeSandbox(id, env, self)
        return box

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        if id not in self.live:
            raise SandboxDied(f"environment {id} is gone")
        return self.live[id]

    async def owned(self) -> list[OwnedSandbox]:
        return [OwnedSandbox(id, box.env.key, 0.0) for id, box in self.live.items()]

    async def destroy(self, id: str) -> None:
        await asyncio.sleep(0)  # as elsewhere, it is not gone at once
        if (box := self.live.pop(id, None)) is not None:
            self.there -= 1
            box.lose("it was destroyed")

    async def images(self) -> list[str] | None:
        return None

    async def disk(self) -> Disk | None:
        return self.space

    async def written(self) -> dict[str, int]:
        return dict.fromkeys(self.live, 0)

    async def snapshot(self, id: str, name: str) -> Snapshot:
        if id not in self.live:
            raise SandboxDied(f"environment {id} is gone")
        found = self.kept[name] = Snapshot(name, self.live[id].env.key, 0)
        return found

    async def fork(self, env: Env, snapshot: str, id: str) -> LiveSandbox:
        if snapshot not in self.kept:
            raise SandboxDied(f"snapshot {snapshot} is gone, and its files with it")
        box = await self.create(env, id)
        self.forked.append((snapshot, id))
        return box

    async def snapshots(self) -> list[OwnedSandbox]:
        return [OwnedSandbox(s.id, s.key, 0.0) for s in self.kept.values()]

    async def discard(self, snapshot: str) -> None:
        self.kept.pop(snapshot, None)

    async def close(self) -> None: ...


async def _nowhere(data: bytes) -> None: ...


__all__ = ["FakeProvider", "FakeSandbox"]
