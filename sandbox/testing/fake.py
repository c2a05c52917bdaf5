"""A fake provider, for benchmarks of the scheduler and tests.

Latencies and errors are the caller's. Commands do nothing and succeed; files are not kept.
"""

import asyncio
from collections.abc import Awaitable, Callable

from drawloom.environments import Command, Env, ExecResult
from drawloom.errors import SandboxDied
from drawloom.sandbox.api.provider import Disk, Gateway, OwnedSandbox, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.helper.protocol import Wire


class FakeSandbox(LiveSandbox):
    """Run nothing, until it is destroyed."""

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
    """Make fake environments.

    Args:
        make: awaited for each environment; it may sleep, and raise a `SandboxError`.
        starts: environments that are made at a time.

    Attributes:
        live: environments that exist, by id.
        kept: snapshots that exist, by id.
        forked: snapshot and environment of each fork.
        made: how many environments were made.
        space: the answer of `disk`.
        there, most: how many exist or are being made, now and at most.
    """

    name, host, keeps_running = "fake", "here", False
    gateway: Gateway | None = None
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
        sandbox = self.live[id] = FakeSandbox(id, env, self)
        return sandbox

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        if id not in self.live:
            raise SandboxDied(f"environment {id} is gone")
        return self.live[id]

    async def owned(self) -> list[OwnedSandbox]:
        return [OwnedSandbox(id, sandbox.env.key, 0.0) for id, sandbox in self.live.items()]

    async def destroy(self, id: str) -> None:
        await asyncio.sleep(0)  # as with real providers, it is not gone at once
        if (sandbox := self.live.pop(id, None)) is not None:
            self.there -= 1
            sandbox.lose("it was destroyed")

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
        sandbox = await self.create(env, id)
        self.forked.append((snapshot, id))
        return sandbox

    async def snapshots(self) -> list[OwnedSandbox]:
        return [OwnedSandbox(s.id, s.key, 0.0) for s in self.kept.values()]

    async def discard(self, snapshot: str) -> None:
        self.kept.pop(snapshot, None)

    async def close(self) -> None: ...


async def _nowhere(data: bytes) -> None: ...


__all__ = ["FakeProvider", "FakeSandbox"]
