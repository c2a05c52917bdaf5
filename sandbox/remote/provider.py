"""Environments on other machines: every sandbox host on a broker, as one provider.

New environments go where their image is and where most room is left.
"""

import asyncio
import contextlib
import itertools

from drawloom.environments import Env
from drawloom.errors import ImageNotFound, SandboxDied, SandboxError
from drawloom.sandbox.api.provider import Disk, Gateway, OwnedSandbox, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.remote.broker import Broker
from drawloom.sandbox.remote.host_registry import Host, Hosts
from drawloom.sandbox.remote.messages import Op
from drawloom.sandbox.remote.remote_sandbox import RemoteSandbox

_PLACES = 3


class RemoteProvider:
    """Implements `Provider` over all hosts of a broker: ``await RemoteProvider.open(…)``."""

    name = "mqtt"
    keeps_running = True
    gateway: Gateway | None = None

    def __init__(self, owner: str, broker: Broker) -> None:
        self.hosts = Hosts(owner, broker, self._lost)
        self.host = str(broker)
        self._boxes: dict[str, RemoteSandbox] = {}
        self._kept: dict[str, Host] = {}

    @classmethod
    async def open(cls, owner: str, url: str) -> "RemoteProvider":
        """Raises `SandboxUnavailable` when the broker does not answer, `ConfigError` for a URL
        that is none."""
        made = cls(owner, Broker.parse(url))
        await made.hosts.connect()
        return made

    async def close(self) -> None:
        await self.hosts.close()
        for box in list(self._boxes.values()):
            box.lose("it was let go")

    def _lost(self, host: Host, words: str) -> None:
        for id in list(host.boxes):
            if (box := self._boxes.pop(id, None)) is not None:
                box.lose(words)
        self._kept = {s: h for s, h in self._kept.items() if h is not host}

    async def create(self, env: Env, id: str) -> LiveSandbox:
        """Tries other hosts when one is lost, full or without the image."""
        tried: set[str] = set()
        for attempt in itertools.count(1):
            host = await self.hosts.place(env, tried)
            try:
                return await self._make(host, "create", env, id)
            except SandboxError as error:
                tried.add(host.id)
                others = any(id not in tried for id, _ in self.hosts.known())
                known = isinstance(error, ImageNotFound | SandboxDied) or "is full" in str(error)
                if attempt == _PLACES or not others or not known:
                    raise
        raise AssertionError("unreachable")

    async def _make(self, host: Host, op: Op, env: Env, id: str, name: str = "") -> LiveSandbox:
        term = host.term
        host.making += 1
        try:
            answer, _ = await self.hosts.ask(host, op, box=id, env=env, name=name)
        except asyncio.CancelledError:
            self.hosts.surely(self._undo(host, id))
            raise
        finally:
            host.making -= 1
        if host.term != term:
            raise SandboxDied(f"sandbox host {host.name} is gone, and environment {id} with it")
        box = RemoteSandbox(id, env, self.hosts, host, self.destroy)
        box.wire.isolation, box.wire.lacking = answer.numbers[0], answer.said
        self._boxes[id] = box
        host.boxes.add(id)
        return box

    async def _undo(self, host: Host, id: str) -> None:
        with contextlib.suppress(SandboxError):
            await self.hosts.ask(host, "destroy", box=id)

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        for host in await self.hosts.ready():
            rows, _ = await self.hosts.ask(host, "owned")
            if id in (row[0] for row in rows.rows):
                return await self._make(host, "adopt", env, id)
        raise SandboxDied(f"environment {id} is gone, and its files with it: no host has it")

    async def fork(self, env: Env, snapshot: str, id: str) -> LiveSandbox:
        return await self._make(await self._keeper(snapshot), "fork", env, id, snapshot)

    async def _keeper(self, snapshot: str) -> Host:
        if snapshot not in self._kept:
            await self.snapshots()
        if snapshot not in self._kept:
            raise SandboxDied(f"snapshot {snapshot} is gone, and its files with it")
        return self._kept[snapshot]

    async def snapshot(self, id: str, name: str) -> Snapshot:
        box = self._boxes.get(id)
        if box is None:
            raise SandboxDied(f"environment {id} is gone, and its files with it")
        answer, _ = await self.hosts.ask(box.on, "snapshot", box=id, name=name)
        ((kept, key, size),) = answer.rows
        self._kept[kept] = box.on
        return Snapshot(kept, key, int(size))

    async def discard(self, snapshot: str) -> None:
        with contextlib.suppress(SandboxDied):
            host = await self._keeper(snapshot)
            await self.hosts.ask(host, "discard", name=snapshot)
        self._kept.pop(snapshot, None)

    async def owned(self) -> list[OwnedSandbox]:
        return [OwnedSandbox(*row) for _, rows in await self._everywhere("owned") for row in rows]

    async def snapshots(self) -> list[OwnedSandbox]:
        found = []
        for host, rows in await self._everywhere("snapshots"):
            for row in rows:
                self._kept[row[0]] = host
                found.append(OwnedSandbox(*row))
        return found

    async def images(self) -> list[str] | None:
        known = [status.images for _, status in self.hosts.known()]
        return (
            None
            if None in known or not known
            else sorted({i for images in known for i in images or ()})
        )

    async def disk(self) -> Disk | None:
        return None

    async def written(self) -> dict[str, int]:
        found = await self._everywhere("written")
        return {row[0]: int(row[2]) for _, rows in found for row in rows}

    async def _everywhere(self, op: Op) -> list[tuple[Host, list[tuple[str, str, float]]]]:
        hosts = self.hosts.all()
        answers = await asyncio.gather(
            *(self.hosts.ask(host, op) for host in hosts), return_exceptions=True
        )
        found = []
        for host, answer in zip(hosts, answers, strict=True):
            if isinstance(answer, SandboxDied):
                continue
            if isinstance(answer, BaseException):
                raise answer
            found.append((host, answer[0].rows))
        return found

    async def destroy(self, id: str) -> None:
        box = self._boxes.pop(id, None)
        for host in [box.on] if box is not None else self.hosts.all():
            host.boxes.discard(id)
            with contextlib.suppress(SandboxDied):
                await self.hosts.ask(host, "destroy", box=id)


__all__ = ["RemoteProvider"]
