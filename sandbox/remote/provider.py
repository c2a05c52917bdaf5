"""Environments on other machines: every sandbox host on a broker, as one provider.

A host is known by its retained status and alive while its beats come. New environments go where
their image is and where most room is left. A host that is silent for longer than its lease can last
(`host.silence`) is given up: whoever waits for it hears `SandboxDied`, and should it come back,
what it still had is ended before anything else is done there.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from aiomqtt import Message as MqttMessage
from pydantic import ValidationError

from drawloom import errors
from drawloom.environments import Env
from drawloom.errors import ImageNotFound, SandboxDied, SandboxError, SandboxUnavailable
from drawloom.ids import new_id
from drawloom.sandbox.base import Disk, Doors, LiveSandbox, OwnedSandbox, Snapshot
from drawloom.sandbox.remote.broker import Broker, Link, NotConnected, payload
from drawloom.sandbox.remote.host import LEASE, silence
from drawloom.sandbox.remote.messages import (
    Answer,
    Beat,
    Bye,
    Grant,
    HostStatus,
    Malformed,
    Op,
    OwnerStatus,
    Part,
    Request,
    pack,
    unpack,
)
from drawloom.sandbox.wire import Reply, Wire

log = logging.getLogger("drawloom.sandbox")

_CONNECT_SECONDS = 15.0
_HOST_SECONDS = 20.0  # as long as a claim waits for a host to appear
_AGAIN_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_CLOSE_SECONDS = 5.0
_PLACES = 3


@dataclass(slots=True, eq=False)
class _Host:
    """A host as this runtime sees it. `status` is None when it said that it is gone."""

    id: str
    status: HostStatus | None = None
    lease: float = LEASE
    heard: float = 0.0
    term: int = 0
    making: int = 0
    lost: bool = True
    boxes: set[str] = field(default_factory=set)
    settled: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.id.rpartition(".")[0]

    def ready(self, now: float) -> bool:
        """Whether new work may go there."""
        return self.status is not None and not self.lost and now - self.heard < self.lease / 2

    @property
    def load(self) -> float:
        assert self.status is not None
        return (max(self.status.used, len(self.boxes)) + self.making) / self.status.most


@dataclass(slots=True, eq=False)
class _Asked:
    """A request that is not answered yet."""

    host: _Host
    box: str
    data: bytes
    answer: "asyncio.Future[tuple[Answer, bytes]]"
    on_part: Callable[[bytes], None] | None
    parts: int = 0


class RemoteWire(Wire):
    """The line to a helper on another machine: each request is a message, each answer another."""

    def __init__(self, id: str, provider: "RemoteProvider", host: _Host) -> None:
        super().__init__(id, _nowhere)
        self._provider, self.host = provider, host

    async def call(
        self,
        head: str,
        *payloads: bytes,
        timeout: float | None = None,
        lead: bytes = b"",
        on_part: Callable[[bytes], None] | None = None,
    ) -> Reply:
        answer, data = await self._ask("call", head, payloads, timeout, on_part)
        a, b, c, d = answer.numbers
        return Reply(answer.reply, (a, b, c, d), data)

    async def tell(self, head: str, *payloads: bytes, lead: bytes = b"") -> None:
        if head.startswith(("ack ", "cancel ", "drop ")):  # nobody waits for an answer to these
            self._provider.later(self._quietly(head))
            await asyncio.sleep(0)  # on its way before what is asked next
        else:
            await self._ask("tell", head, payloads, None, None)

    async def _quietly(self, head: str) -> None:
        with contextlib.suppress(SandboxError):
            await self._ask("tell", head, (), None, None)

    async def _ask(
        self,
        op: Op,
        head: str,
        payloads: tuple[bytes, ...],
        timeout: float | None,
        on_part: Callable[[bytes], None] | None,
    ) -> tuple[Answer, bytes]:
        if self._dead is not None:
            raise SandboxDied(f"{self.name} is gone: {self._dead}")
        return await self._provider.ask(
            self.host, op, *payloads, on_part=on_part, box=self.name, head=head,
            sizes=[len(p) for p in payloads], timeout=timeout, stream=on_part is not None,
        )  # fmt: skip

    def end(self, reason: str) -> None:
        super().end(reason)
        self._provider.give_up(lambda asked: asked.box == self.name, f"{self.name}: {reason}")


class RemoteSandbox(LiveSandbox):
    """An environment on a sandbox host."""

    def __init__(self, id: str, env: Env, provider: "RemoteProvider", host: _Host) -> None:
        super().__init__(id, env, RemoteWire(id, provider, host))
        self._provider, self.on = provider, host

    async def destroy(self) -> None:
        await super().destroy()
        await self._provider.destroy(self.id)


class RemoteProvider:
    """Implements `Provider` over all hosts of a broker: ``await RemoteProvider.open(…)``."""

    name = "mqtt"
    keeps_running = True
    doors: Doors | None = None

    def __init__(self, owner: str, broker: Broker) -> None:
        self.host = str(broker)
        self._owner, self._prefix = owner, broker.prefix
        self._epoch = time.time_ns() // 1_000_000
        self._next = 0
        self._asked: dict[int, _Asked] = {}
        self._hosts: dict[str, _Host] = {}
        self._boxes: dict[str, RemoteSandbox] = {}
        self._kept: dict[str, _Host] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._undoing: set[asyncio.Task[None]] = set()
        mine = f"{self._prefix}/owners/{owner}"
        topics = [f"{self._prefix}/hosts/+", f"{self._prefix}/from/+/{owner}"]
        will = OwnerStatus(online=False, epoch=self._epoch).model_dump_json().encode()
        name = f"{owner}.{new_id('o').removeprefix('o-')}"
        self._link = Link(broker, name, (mine, will), topics, self._heard, self._on_up)

    @classmethod
    async def open(cls, owner: str, url: str) -> "RemoteProvider":
        """Raises `SandboxUnavailable` when the broker does not answer, `ConfigError` for a URL
        that is none."""
        made = cls(owner, Broker.parse(url))
        await made._link.open(_CONNECT_SECONDS)
        made.later(made._watch())
        return made

    async def close(self) -> None:
        if self._undoing:
            await asyncio.wait(self._undoing, timeout=_CLOSE_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(NotConnected):
            await self._publish_status(OwnerStatus(online=False, epoch=self._epoch))
            await self._link.publish(f"{self._prefix}/owners/{self._owner}", b"", retain=True)
        await self._link.close()
        for box in list(self._boxes.values()):
            box.lose("it was let go")
        self.give_up(lambda _: True, "this runtime was closed")

    def later(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run something beside everything else, until this is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- what it hears --------------------------------------------------------------------

    async def _on_up(self) -> None:
        await self._publish_status(OwnerStatus(online=True, epoch=self._epoch))
        for number in list(self._asked):
            self.later(self._send(number))

    async def _publish_status(self, status: OwnerStatus) -> None:
        topic = f"{self._prefix}/owners/{self._owner}"
        await self._link.publish(topic, status.model_dump_json().encode(), retain=True)

    def _heard(self, message: MqttMessage) -> None:
        kind, id, *_ = str(message.topic).removeprefix(f"{self._prefix}/").split("/")
        host = self._hosts.setdefault(id, _Host(id))
        data = payload(message)
        try:
            if kind == "hosts":
                host.status = HostStatus.model_validate_json(data) if data else None
                host.lease = host.status.lease if host.status else host.lease
            else:
                self._told_by(host, *unpack(data), message)
        except (Malformed, ValidationError) as error:
            log.warning("a message on %s is not understood: %s", message.topic, error)
        self._changed.set()

    def _told_by(self, host: _Host, said: object, body: bytes, message: MqttMessage) -> None:
        if isinstance(said, Beat):
            host.heard, host.lost = time.monotonic(), False
            self.later(self._grant(host, said.number))
        elif isinstance(said, Bye):
            self._lose(host, "it was stopped")
        elif isinstance(said, Answer | Part):
            correlation = getattr(message.properties, "CorrelationData", b"")
            asked = self._asked.get(self._number(correlation))
            if asked is None:
                return
            if isinstance(said, Answer):
                if not asked.answer.done():
                    asked.answer.set_result((said, body))
            elif said.index == asked.parts and asked.on_part is not None:
                asked.parts += 1
                asked.on_part(body)

    async def _grant(self, host: _Host, beat: int) -> None:
        settled, host.settled = host.settled, []
        grant = Grant(
            epoch=self._epoch, term=host.term, beat=beat, low=self._low(host), settled=settled
        )
        try:
            await self._link.publish(self._to(host), pack(grant))
        except NotConnected:
            host.settled += settled

    # --- what it asks ---------------------------------------------------------------------

    def _to(self, host: _Host) -> str:
        return f"{self._prefix}/to/{host.id}/{self._owner}"

    def _low(self, host: _Host) -> int:
        """All smaller numbers are settled."""
        return min((n for n, a in self._asked.items() if a.host is host), default=self._next)

    async def ask(
        self,
        host: _Host,
        op: Op,
        *pieces: bytes,
        on_part: Callable[[bytes], None] | None = None,
        **more: Any,
    ) -> tuple[Answer, bytes]:
        """Have a host do something, once; waits for as long as the host lives.

        Raises the error that it answers with, `SandboxDied` when it is given up.
        """
        if host.lost:
            raise SandboxDied(f"sandbox host {host.name} is gone")
        number, self._next = self._next, self._next + 1
        future: asyncio.Future[tuple[Answer, bytes]] = asyncio.get_running_loop().create_future()
        asked = _Asked(host, more.get("box", ""), b"", future, on_part)
        self._asked[number] = asked
        settled, host.settled = host.settled, []
        request = Request(
            number=number, epoch=self._epoch, term=host.term, low=self._low(host),
            settled=settled, op=op, **more,
        )  # fmt: skip
        asked.data = pack(request, *pieces)
        try:
            answer, data = await self._answered(number, asked)
        finally:
            del self._asked[number]
            host.settled.append(number)
        if answer.error:
            kind = getattr(errors, answer.error, SandboxError)
            raise (kind if issubclass(kind, SandboxError) else SandboxError)(answer.said)
        return answer, data

    async def _answered(self, number: int, asked: _Asked) -> tuple[Answer, bytes]:
        while True:
            await self._send(number)
            done, _ = await asyncio.wait([asked.answer], timeout=_AGAIN_SECONDS)
            if done:
                return asked.answer.result()

    async def _send(self, number: int) -> None:
        asked = self._asked.get(number)
        if asked is None or asked.answer.done():
            return
        with contextlib.suppress(NotConnected):  # it is sent again when we are connected again
            await self._link.publish(
                self._to(asked.host), asked.data,
                reply_to=f"{self._prefix}/from/{asked.host.id}/{self._owner}",
                correlation=b"%d.%d" % (self._epoch, number),
            )  # fmt: skip

    def _number(self, correlation: bytes) -> int:
        """Of the request that an answer is to; -1 if it is not to one of ours."""
        epoch, _, number = correlation.partition(b".")
        return int(number) if number.isdigit() and epoch == b"%d" % self._epoch else -1

    def give_up(self, which: Callable[[_Asked], bool], reason: str) -> None:
        """Whoever waits for one of these is told why there will be no answer."""
        for asked in self._asked.values():
            if which(asked) and not asked.answer.done():
                asked.answer.set_exception(SandboxDied(reason))

    # --- hosts ----------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Give up hosts that are silent for too long, by the clock of a connection that stands: a
        broker that was away says nothing about them."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if not self._link.up.is_set():
                continue
            now = time.monotonic()
            for host in list(self._hosts.values()):
                silent = now - max(host.heard, self._link.since)
                if not host.lost and silent > silence(host.lease):
                    self._lose(host, f"nothing was heard of it for {silent:.0f} s")

    def _lose(self, host: _Host, reason: str) -> None:
        host.term += 1
        host.lost = True
        words = f"sandbox host {host.name} is gone: {reason}"
        if host.boxes:
            log.warning("%s; %d environments with it", words, len(host.boxes))
        for id in list(host.boxes):
            if (box := self._boxes.pop(id, None)) is not None:
                box.lose(words)
        host.boxes.clear()
        self._kept = {s: h for s, h in self._kept.items() if h is not host}
        self.give_up(lambda asked: asked.host is host, words)
        self._changed.set()

    def hosts(self) -> list[tuple[str, HostStatus]]:
        """Those that new work may go to."""
        now = time.monotonic()
        return [(h.id, h.status) for h in self._hosts.values() if h.status and h.ready(now)]

    async def _ready(self) -> list[_Host]:
        """Raises `SandboxUnavailable` when none appears in time."""
        deadline = time.monotonic() + _HOST_SECONDS
        while True:
            now = time.monotonic()
            if found := [host for host in self._hosts.values() if host.ready(now)]:
                return found
            if now > deadline:
                raise SandboxUnavailable(
                    f"no sandbox host is there: drawloom sandbox host --broker {self.host}"
                )
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(1.0, deadline - now + 0.01))

    async def _place(self, env: Env, tried: set[str]) -> _Host:
        """Where an image is, rather than where it is not; then where most room is left."""
        found = [host for host in await self._ready() if host.id not in tried]
        room = [host for host in found if host.load < 1] or found
        if not room:
            raise SandboxError("every sandbox host was tried")
        return min(room, key=lambda host: (not _has(host, env), host.load))

    # --- Provider -------------------------------------------------------------------------

    async def create(self, env: Env, id: str) -> LiveSandbox:
        """Tries other hosts when one is lost, full or without the image."""
        tried: set[str] = set()
        for attempt in itertools.count(1):
            host = await self._place(env, tried)
            try:
                return await self._make(host, "create", env, id)
            except SandboxError as error:
                tried.add(host.id)
                others = any(id not in tried for id, _ in self.hosts())
                known = isinstance(error, ImageNotFound | SandboxDied) or "is full" in str(error)
                if attempt == _PLACES or not others or not known:
                    raise
        raise AssertionError("unreachable")

    async def _make(self, host: _Host, op: Op, env: Env, id: str, name: str = "") -> LiveSandbox:
        term = host.term
        host.making += 1
        try:
            answer, _ = await self.ask(host, op, box=id, env=env, name=name)
        except asyncio.CancelledError:
            undoing = self.later(self._undo(host, id))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            raise
        finally:
            host.making -= 1
        if host.term != term:
            raise SandboxDied(f"sandbox host {host.name} is gone, and environment {id} with it")
        box = RemoteSandbox(id, env, self, host)
        box.wire.isolation = answer.numbers[0]
        self._boxes[id] = box
        host.boxes.add(id)
        return box

    async def _undo(self, host: _Host, id: str) -> None:
        with contextlib.suppress(SandboxError):
            await self.ask(host, "destroy", box=id)

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        for host in await self._ready():
            rows, _ = await self.ask(host, "owned")
            if id in (row[0] for row in rows.rows):
                return await self._make(host, "adopt", env, id)
        raise SandboxDied(f"environment {id} is gone, and its files with it: no host has it")

    async def fork(self, env: Env, snapshot: str, id: str) -> LiveSandbox:
        return await self._make(await self._keeper(snapshot), "fork", env, id, snapshot)

    async def _keeper(self, snapshot: str) -> _Host:
        if snapshot not in self._kept:
            await self.snapshots()
        if snapshot not in self._kept:
            raise SandboxDied(f"snapshot {snapshot} is gone, and its files with it")
        return self._kept[snapshot]

    async def snapshot(self, id: str, name: str) -> Snapshot:
        box = self._boxes.get(id)
        if box is None:
            raise SandboxDied(f"environment {id} is gone, and its files with it")
        answer, _ = await self.ask(box.on, "snapshot", box=id, name=name)
        ((kept, key, size),) = answer.rows
        self._kept[kept] = box.on
        return Snapshot(kept, key, int(size))

    async def discard(self, snapshot: str) -> None:
        with contextlib.suppress(SandboxDied):
            host = await self._keeper(snapshot)
            await self.ask(host, "discard", name=snapshot)
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
        known = [status.images for _, status in self.hosts()]
        return None if None in known else sorted({i for images in known for i in images or ()})

    async def disk(self) -> Disk | None:
        return None

    async def written(self) -> dict[str, int]:
        found = await self._everywhere("written")
        return {row[0]: int(row[2]) for _, rows in found for row in rows}

    async def _everywhere(self, op: Op) -> list[tuple[_Host, list[tuple[str, str, float]]]]:
        hosts = [host for host in self._hosts.values() if not host.lost]
        answers = await asyncio.gather(
            *(self.ask(host, op) for host in hosts), return_exceptions=True
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
        for host in [box.on] if box is not None else list(self._hosts.values()):
            host.boxes.discard(id)
            with contextlib.suppress(SandboxDied):
                await self.ask(host, "destroy", box=id)


def _has(host: _Host, env: Env) -> bool:
    images = host.status.images if host.status is not None else []
    return images is None or env.image in images


async def _nowhere(data: bytes) -> None: ...


__all__ = ["RemoteProvider", "RemoteSandbox"]
