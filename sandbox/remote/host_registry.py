"""The sandbox hosts of a broker as a runtime sees them, and its requests to them.

A host is known by its retained status and alive while its beats come. One that is silent for longer
than its lease can last (`lease.silence`) is given up: requests to it raise `SandboxDied`. Should it
come back, the environments that it still has are ended before anything else is done there.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from aiomqtt import Message as MqttMessage
from pydantic import ValidationError

from drawloom import errors
from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError, SandboxUnavailable
from drawloom.ids import new_id
from drawloom.sandbox.remote.broker import Broker, Link, NotConnected, payload
from drawloom.sandbox.remote.lease import silence
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
    Stale,
    pack,
    unpack,
)
from drawloom.sandbox.remote.remote_host import PendingRequest, RemoteHost

log = logging.getLogger("drawloom.sandbox")

CONNECT_SECONDS = 15.0
_HOST_SECONDS = 20.0  # as long as a claim waits for a host to appear
_INCARNATIONS = 3
_MEET_SECONDS, _ALONE_SECONDS = 3.0, 0.25  # statuses come at once, beats when we are seen
_AGAIN_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_CLOSE_SECONDS = 5.0


class HostRegistry:
    """Find the hosts of a broker for one owner, and send requests to them.

    Args:
        on_lost: called with each host that is given up, and why.
    """

    def __init__(
        self, owner: str, broker: Broker, on_lost: Callable[[RemoteHost, str], None]
    ) -> None:
        self._on_lost = on_lost
        self.broker = str(broker)
        self._owner, self._prefix = owner, broker.prefix
        self._epoch, self._latest = time.time_ns() // 1_000_000, -1
        self._next = 0
        self._asked: dict[int, PendingRequest] = {}
        self._hosts: dict[str, RemoteHost] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_things: set[asyncio.Task[None]] = set()
        self._link = self._new_link(broker)

    def _new_link(self, broker: Broker) -> Link:
        mine = f"{self._prefix}/owners/{self._owner}"
        topics = [f"{self._prefix}/hosts/+", f"{self._prefix}/from/+/{self._owner}"]
        will = OwnerStatus(online=False, epoch=self._epoch).model_dump_json().encode()
        name = f"{self._owner}.{new_id('o').removeprefix('o-')}"
        return Link(broker, name, (mine, will), topics, self._on_message, self._on_up)

    async def connect(self) -> None:
        """Connect to the broker, and wait until its hosts are known.

        An incarnation that is not the latest to them, because clocks went back, begins again as the
        next one.

        Raises:
            SandboxUnavailable: the broker does not answer, or another runtime has the same owner.
        """
        for _ in range(_INCARNATIONS):
            await self._link.open(CONNECT_SECONDS)
            await self._meet()
            if await self._is_latest():
                self.later(self._watch())
                return
            await self._link.close()
            self._hosts.clear()
            self._epoch = self._latest + 1
            self._link = self._new_link(self._link.broker)
        raise SandboxUnavailable(
            f"another runtime with the same store uses the hosts of {self.broker}: stop it first"
        )

    async def _is_latest(self) -> bool:
        """Return False if a host has heard of a later incarnation: ask all of them."""
        asking = [self.ask(host, "owned") for host in self.all()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_MEET_SECONDS):
                await asyncio.gather(*asking, return_exceptions=True)
        return self._latest < self._epoch

    async def _meet(self) -> None:
        began = time.monotonic()
        while (waited := time.monotonic() - began) < _MEET_SECONDS:
            offered = [host for host in self._hosts.values() if host.status is not None]
            if self._latest > self._epoch:
                return
            if (offered or waited > _ALONE_SECONDS) and not any(host.lost for host in offered):
                return
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        if self._last_things:
            await asyncio.wait(self._last_things, timeout=_CLOSE_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(NotConnected):
            await self._publish_status(OwnerStatus(online=False, epoch=self._epoch))
            await self._link.publish(f"{self._prefix}/owners/{self._owner}", b"", retain=True)
        await self._link.close()
        self.give_up(lambda _: True, "this runtime was closed")

    def surely(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background; closing waits for it a little."""
        task = self.later(work)
        self._last_things.add(task)
        task.add_done_callback(self._last_things.discard)

    def later(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run something in the background, until this is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def all(self) -> list[RemoteHost]:
        """Return the hosts that are not given up."""
        return [host for host in self._hosts.values() if not host.lost]

    # --- messages of hosts ----------------------------------------------------------------

    async def _on_up(self) -> None:
        await self._publish_status(OwnerStatus(online=True, epoch=self._epoch))
        for number in list(self._asked):
            self.later(self._send(number))

    async def _publish_status(self, status: OwnerStatus) -> None:
        topic = f"{self._prefix}/owners/{self._owner}"
        await self._link.publish(topic, status.model_dump_json().encode(), retain=True)

    def _on_message(self, message: MqttMessage) -> None:
        kind, id, *_ = str(message.topic).removeprefix(f"{self._prefix}/").split("/")
        host = self._hosts.setdefault(id, RemoteHost(id))
        data = payload(message)
        try:
            if kind == "hosts":
                host.status = HostStatus.model_validate_json(data) if data else None
                host.lease = host.status.lease if host.status else host.lease
            else:
                self._take(host, *unpack(data), message)
        except (Malformed, ValidationError) as error:
            log.warning("a message on %s is not understood: %s", message.topic, error)
        self._changed.set()

    def _take(self, host: RemoteHost, said: object, body: bytes, message: MqttMessage) -> None:
        if isinstance(said, Beat):
            host.heard, host.lost = time.monotonic(), False
            self.later(self._grant(host, said.number))
        elif isinstance(said, Bye):
            self._lose(host, "it was stopped")
        elif isinstance(said, Stale) and said.epoch > self._epoch:
            self._latest = max(self._latest, said.epoch)
            self._lose(host, "it serves a later runtime with the same store")
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

    async def _grant(self, host: RemoteHost, beat: int) -> None:
        settled, host.settled = host.settled, []
        grant = Grant(
            epoch=self._epoch, term=host.term, beat=beat, low=self._low(host), settled=settled
        )
        try:
            await self._link.publish(self._to(host), pack(grant))
        except NotConnected:
            host.settled += settled

    # --- requests -------------------------------------------------------------------------

    def _to(self, host: RemoteHost) -> str:
        return f"{self._prefix}/to/{host.id}/{self._owner}"

    def _low(self, host: RemoteHost) -> int:
        """Return the number below which all requests to a host are settled."""
        return min((n for n, a in self._asked.items() if a.host is host), default=self._next)

    async def ask(
        self,
        host: RemoteHost,
        op: Op,
        *pieces: bytes,
        on_part: Callable[[bytes], None] | None = None,
        **more: Any,
    ) -> tuple[Answer, bytes]:
        """Have a host do something once, and wait for as long as the host lives.

        Args:
            pieces: bytes that follow the request.
            on_part: called with output that comes before the answer.
            more: further fields of the `Request`.

        Returns:
            The answer, and the bytes that follow it.

        Raises:
            SandboxDied: the host was given up.
            SandboxError: the error that the host answers with.
        """
        if host.lost:
            raise SandboxDied(f"sandbox host {host.name} is gone")
        number, self._next = self._next, self._next + 1
        given = {name: value for name, value in more.items() if value != ""}
        try:
            request = Request(
                number=number, epoch=self._epoch, term=host.term, low=0, op=op, **given
            )
        except ValidationError as error:
            raise SandboxError(f"{op} on sandbox host {host.name}: {error}") from None
        future: asyncio.Future[tuple[Answer, bytes]] = asyncio.get_running_loop().create_future()
        asked = PendingRequest(host, more.get("box", ""), b"", future, on_part)
        self._asked[number] = asked
        settled, host.settled = host.settled, []
        request = request.model_copy(update={"low": self._low(host), "settled": settled})
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

    async def _answered(self, number: int, asked: PendingRequest) -> tuple[Answer, bytes]:
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
                self._to(asked.host),
                asked.data,
                reply_to=f"{self._prefix}/from/{asked.host.id}/{self._owner}",
                correlation=b"%d.%d" % (self._epoch, number),
            )

    def _number(self, correlation: bytes) -> int:
        """Return the number of the request that an answer is to; -1 for none of ours."""
        epoch, _, number = correlation.partition(b".")
        return int(number) if number.isdigit() and epoch == b"%d" % self._epoch else -1

    def give_up(self, which: Callable[[PendingRequest], bool], reason: str) -> None:
        """Let some of the open requests raise `SandboxDied` with a reason."""
        for asked in self._asked.values():
            if which(asked) and not asked.answer.done():
                asked.answer.set_exception(SandboxDied(reason))
                asked.answer.exception()  # the caller may be gone as well

    # --- hosts ----------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Give up hosts that are silent for too long, while there is a connection to the broker."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if not self._link.up.is_set():
                continue
            now = time.monotonic()
            for host in list(self._hosts.values()):
                silent = now - max(host.heard, self._link.since)
                if not host.lost and silent > silence(host.lease):
                    self._lose(host, f"nothing was heard of it for {silent:.0f} s")

    def _lose(self, host: RemoteHost, reason: str) -> None:
        host.term += 1
        host.lost = True
        words = f"sandbox host {host.name} is gone: {reason}"
        if host.sandboxes:
            log.warning("%s; %d environments with it", words, len(host.sandboxes))
        self._on_lost(host, words)
        host.sandboxes.clear()
        self.give_up(lambda asked: asked.host is host, words)
        self._changed.set()

    def known(self) -> list[tuple[str, HostStatus]]:
        """Return ids and statuses of the hosts that new work may go to."""
        now = time.monotonic()
        return [(h.id, h.status) for h in self._hosts.values() if h.status and h.ready(now)]

    async def ready(self) -> list[RemoteHost]:
        """Wait for a host that new work may go to. Raises `SandboxUnavailable`."""
        deadline = time.monotonic() + _HOST_SECONDS
        while True:
            now = time.monotonic()
            if found := [host for host in self._hosts.values() if host.ready(now)]:
                return found
            if now > deadline:
                raise SandboxUnavailable(
                    f"no sandbox host is there: drawloom sandbox host --broker {self.broker}"
                )
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(1.0, deadline - now + 0.01))

    async def place(self, env: Env, tried: set[str]) -> RemoteHost:
        """Choose a host: one that has the image, then the least loaded one."""
        found = [host for host in await self.ready() if host.id not in tried]
        room = [host for host in found if host.load < 1] or found
        if not room:
            raise SandboxError("every sandbox host was tried")
        return min(room, key=lambda host: (not host.has(env), host.load))


__all__ = ["HostRegistry"]
