"""The provider of all sandbox hosts behind a broker.

New environments go where their image is, then to the least loaded host.
"""

import asyncio
import contextlib
import itertools

from drawloom.environments import Env
from drawloom.errors import ImageNotFound, SandboxDied, SandboxError
from drawloom.sandbox.api.provider import Disk, Gateway, OwnedSandbox, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.remote.broker import Broker
from drawloom.sandbox.remote.host_registry import HostRegistry
from drawloom.sandbox.remote.messages import Op
from drawloom.sandbox.remote.remote_host import RemoteHost
from drawloom.sandbox.remote.remote_sandbox import RemoteSandbox

_TRIES = 3


class RemoteProvider:
    """Implement `Provider` over all hosts of a broker: ``await RemoteProvider.open(…)``."""

    name = "mqtt"
    keeps_running = True
    gateway: Gateway | None = None

    def __init__(self, owner: str, broker: Broker) -> None:
        self.hosts = HostRegistry(owner, broker, self._lost)
        self.host = str(broker)
        self._sandboxes: dict[str, RemoteSandbox] = {}
        self._snapshot_hosts: dict[str, RemoteHost] = {}

    @classmethod
    async def open(cls, owner: str, url: str) -> "RemoteProvider":
        """Connect to a broker and find its hosts.

        Raises:
            SandboxUnavailable: the broker does not answer.
            ConfigError: `url` is no URL of a broker.
        """
        made = cls(owner, Broker.parse(url))
        await made.hosts.connect()
        return made

    async def close(self) -> None:
        await self.hosts.close()
        for sandbox in list(self._sandboxes.values()):
            sandbox.lose("it was let go")

    def _lost(self, host: RemoteHost, words: str) -> None:
        for id in list(host.sandboxes):
            if (sandbox := self._sandboxes.pop(id, None)) is not None:
                sandbox.lose(words)
        self._snapshot_hosts = {s: h for s, h in self._snapshot_hosts.items() if h is not host}

    async def create(self, env: Env, id: str) -> LiveSandbox:
        """Make an environment; try other hosts when one is lost, full or without the image."""
        tried: set[str] = set()
        for attempt in itertools.count(1):
            host = await self.hosts.place(env, tried)
            try:
                return await self._make(host, "create", env, id)
            except SandboxError as error:
                tried.add(host.id)
                others = any(id not in tried for id, _ in self.hosts.known())
                known = isinstance(error, ImageNotFound | SandboxDied) or "is full" in str(error)
                if attempt == _TRIES or not others or not known:
                    raise
        raise AssertionError("unreachable")

    async def _make(
        self, host: RemoteHost, op: Op, env: Env, id: str, name: str = ""
    ) -> LiveSandbox:
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
        sandbox = RemoteSandbox(id, env, self.hosts, host, self.destroy)
        sandbox.wire.isolation, sandbox.wire.lacking = answer.numbers[0], answer.said
        self._sandboxes[id] = sandbox
        host.sandboxes.add(id)
        return sandbox

    async def _undo(self, host: RemoteHost, id: str) -> None:
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

    async def _keeper(self, snapshot: str) -> RemoteHost:
        if snapshot not in self._snapshot_hosts:
            await self.snapshots()
        if snapshot not in self._snapshot_hosts:
            raise SandboxDied(f"snapshot {snapshot} is gone, and its files with it")
        return self._snapshot_hosts[snapshot]

    async def snapshot(self, id: str, name: str) -> Snapshot:
        sandbox = self._sandboxes.get(id)
        if sandbox is None:
            raise SandboxDied(f"environment {id} is gone, and its files with it")
        answer, _ = await self.hosts.ask(sandbox.on, "snapshot", box=id, name=name)
        ((kept, key, size),) = answer.rows
        self._snapshot_hosts[kept] = sandbox.on
        return Snapshot(kept, key, int(size))

    async def discard(self, snapshot: str) -> None:
        with contextlib.suppress(SandboxDied):
            host = await self._keeper(snapshot)
            await self.hosts.ask(host, "discard", name=snapshot)
        self._snapshot_hosts.pop(snapshot, None)

    async def owned(self) -> list[OwnedSandbox]:
        return [OwnedSandbox(*row) for _, rows in await self._everywhere("owned") for row in rows]

    async def snapshots(self) -> list[OwnedSandbox]:
        found = []
        for host, rows in await self._everywhere("snapshots"):
            for row in rows:
                self._snapshot_hosts[row[0]] = host
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

    async def _everywhere(self, op: Op) -> list[tuple[RemoteHost, list[tuple[str, str, float]]]]:
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
        sandbox = self._sandboxes.pop(id, None)
        for host in [sandbox.on] if sandbox is not None else self.hosts.all():
            host.sandboxes.discard(id)
            with contextlib.suppress(SandboxDied):
                await self.hosts.ask(host, "destroy", box=id)


__all__ = ["RemoteProvider"]
