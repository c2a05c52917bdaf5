"""The agent of a sandbox host, which offers environments to runtimes over a broker."""

import asyncio
import contextlib
import functools
import logging
import re
import time
from collections.abc import Awaitable, Callable

from aiomqtt import Message as MqttMessage
from pydantic import ValidationError

from drawloom.errors import DrawloomError, SandboxError
from drawloom.ids import new_id
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.pool.health import keep_alive
from drawloom.sandbox.remote.broker import Broker, Link, NotConnected, payload
from drawloom.sandbox.remote.heartbeats import Heartbeats
from drawloom.sandbox.remote.host_limits import HostLimits
from drawloom.sandbox.remote.host_worker import HostWorker
from drawloom.sandbox.remote.lease import LEASE
from drawloom.sandbox.remote.messages import (
    Answer,
    Bye,
    Grant,
    HostStatus,
    Malformed,
    OwnerStatus,
    Request,
    Stale,
    pack,
    unpack,
)
from drawloom.sandbox.remote.owner_session import Job, OwnerSession, OwnerSessions

log = logging.getLogger("drawloom.sandbox")

_LOOKS, _PINGS = 20, 8
_STATUS_SECONDS = 5.0
_CONNECT_SECONDS = 15.0
_MOST_OWNERS = 256
_OWNER = re.compile(r"[A-Za-z0-9-]{1,64}")  # it becomes the name of a folder


class SandboxHost:
    """Serve runtimes until it is closed: ``async with SandboxHost(…)``.

    Args:
        name: shown to users; each start counts as another host.
        open_provider: makes the provider for one runtime's environments, given its name.
        kind: name of the provider.
        images: names of the images here; None where they do not matter.
        most: most environments at a time, of all runtimes, sidecars included.
        memory: most bytes that they may use together; by default all that the machine has.
        network: whether environments may have a network.
        lease: seconds without contact after which a runtime's environments are ended.
        orphans: seconds that the environments of a runtime that is offline are kept.

    Raises on entry: `SandboxUnavailable` without a broker.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        open_provider: Callable[[str], Awaitable[Provider]],
        *,
        kind: str,
        images: list[str] | None = None,
        most: int = 32,
        memory: int | None = None,
        network: bool = False,
        lease: float = LEASE,
        orphans: float = 600.0,
    ) -> None:
        if not name or any(c in name for c in "/+#\0"):
            raise SandboxError(f"{name!r} is no name for a sandbox host: no /, + or # in it")
        self.id = f"{name}.{new_id('h').removeprefix('h-')}"
        self._name, self._kind, self._images = name, kind, images
        self._lease, self._orphans = lease, orphans
        self._owners = OwnerSessions(_MOST_OWNERS, self._forget)
        self._beats = Heartbeats(lease, self._owners, self._publish)
        self._limits = HostLimits.of_machine(most, memory)
        self._worker = HostWorker(name, open_provider, self._owners, self._limits, network)
        self._last_status: HostStatus | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._prefix = broker.prefix
        mine = f"{self._prefix}/hosts/{self.id}"
        topics = [f"{self._prefix}/to/{self.id}/+", f"{self._prefix}/owners/+"]
        self._link = Link(broker, self.id, (mine, b""), topics, self._on_message, self._on_up)

    async def __aenter__(self) -> "SandboxHost":
        await self._link.open(_CONNECT_SECONDS)
        loops = (self._watch(), self._statuses(), self._pings())
        for loop in (self._beats.regular(), self._beats.greetings(), *loops):
            self._spawn(loop)
        return self

    async def __aexit__(self, *_: object) -> None:
        endings = {owner.ending for owner in self._owners if owner.ending is not None}
        for task in self._work - endings:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        for owner in self._owners:
            await self._end(owner, "its host was stopped")
            with contextlib.suppress(NotConnected):
                await self._publish(owner.name, pack(Bye()))
            await self._close(owner)
        with contextlib.suppress(NotConnected):
            await self._link.publish(f"{self._prefix}/hosts/{self.id}", b"", retain=True)
        await self._link.close()

    @staticmethod
    async def _close(owner: OwnerSession) -> None:
        if owner.provider is not None:
            (provider,) = await asyncio.gather(owner.provider, return_exceptions=True)
            if not isinstance(provider, BaseException):
                await provider.close()

    def _forget(self, owner: OwnerSession) -> None:
        self._spawn(self._close(owner))

    @property
    def used(self) -> int:
        """Return how many environments exist or are being made, sidecars included."""
        return self._worker.used

    # --- messages of runtimes -------------------------------------------------------------

    def _on_message(self, message: MqttMessage) -> None:
        *_, kind, last = str(message.topic).removeprefix(f"{self._prefix}/").split("/")
        if not _OWNER.fullmatch(last):
            return
        try:
            if kind == "owners":
                self._presence(last, payload(message))
            else:
                said, body = unpack(payload(message))
                if isinstance(said, Grant | Request):
                    self._serve(last, said, body, message)
        except (Malformed, ValidationError) as error:
            log.warning("a message on %s is not understood: %s", message.topic, error)

    def _presence(self, name: str, data: bytes) -> None:
        if not data:
            return  # nothing is kept of it any more; it was said before that it is gone
        status = OwnerStatus.model_validate_json(data)
        owner = self._owners.get(name)
        if owner is not None and status.epoch < owner.epoch:
            if status.online:
                self._spawn(self._tell_stale(owner))
            return
        if owner is not None:
            if owner.online and not status.online:
                owner.offline = time.monotonic()
            owner.online = status.online
        if status.online:
            self._beats.meet(name)
        else:
            self._beats.leave(name)

    def _serve(self, name: str, said: Grant | Request, body: bytes, message: MqttMessage) -> None:
        owner = self._owners.admit(name)
        if owner is None:
            log.warning("%s is not served: %d runtimes are at work here", name, _MOST_OWNERS)
            return
        self._beats.leave(name)
        if said.epoch < owner.epoch:
            self._spawn(self._tell_stale(owner))
        if not self._is_current(owner, said.epoch, said.term):
            return
        owner.settle(said.low, said.settled)
        if isinstance(said, Request):
            self._request(owner, said, body, message)
        elif (sent := self._beats.sent(said.beat)) is not None:
            owner.until = max(owner.until, sent + self._lease)

    async def _tell_stale(self, owner: OwnerSession) -> None:
        with contextlib.suppress(NotConnected):
            await self._publish(owner.name, pack(Stale(epoch=owner.epoch)))

    def _is_current(self, owner: OwnerSession, epoch: int, term: int) -> bool:
        """Return False for a message of an incarnation or term of a runtime that is over.

        A later incarnation takes over; a later term ends the environments of the one before.
        """
        if epoch < owner.epoch or (epoch == owner.epoch and term < owner.term):
            return False
        if epoch > owner.epoch:
            for job in owner.jobs.values():
                owner.leave(job)
            owner.epoch, owner.low, owner.jobs, owner.settled = epoch, 0, {}, set()
        elif term > owner.term >= 0 and (owner.sandboxes or self._worker.creating):
            self._begin_end(owner, "its runtime had given this host up")
        owner.term = term
        return True

    def _request(
        self, owner: OwnerSession, request: Request, body: bytes, message: MqttMessage
    ) -> None:
        number = request.number
        if time.monotonic() > owner.until or number < owner.low or number in owner.settled:
            return  # without a lease nothing is begun; it is sent again until it is answered
        job = owner.jobs.get(number)
        if job is None:
            task = self._spawn(self._carry_out(owner, request, body))
            mine = self._from(owner.name)
            asked = str(getattr(message.properties, "ResponseTopic", mine))
            reply_to = asked if asked == mine or asked.startswith(f"{mine}/") else mine
            correlation = getattr(message.properties, "CorrelationData", b"")
            owner.jobs[number] = Job(task, reply_to, correlation)
        elif job.answer is not None:
            self._spawn(self._send(job, job.answer))

    # --- requests -------------------------------------------------------------------------

    async def _carry_out(self, owner: OwnerSession, request: Request, body: bytes) -> None:
        if owner.ending is not None:
            await owner.ending
        if owner.leaving:
            await asyncio.wait(set(owner.leaving))
        data = b""
        try:
            tell = functools.partial(self._part, owner, request.number)
            answer, data = await self._worker.carry_out(owner, request, body, tell)
        except DrawloomError as error:
            answer = Answer(error=type(error).__name__, said=str(error))
        except Malformed as error:
            answer = Answer(error=SandboxError.__name__, said=str(error))
        except Exception as error:  # a fault of the host: the runtime must get an answer
            log.exception("request %s of %s", request.op, owner.name)
            answer = Answer(error=SandboxError.__name__, said=f"host {self._name}: {error!r}")
        job = owner.jobs.get(request.number)
        if job is not None:
            job.answer = pack(answer, data)
            await self._send(job, job.answer)

    # --- leases ---------------------------------------------------------------------------

    def _begin_end(self, owner: OwnerSession, reason: str) -> None:
        if owner.ending is None:
            owner.ending = self._spawn(self._end(owner, reason))

    async def _end(self, owner: OwnerSession, reason: str) -> None:
        """End all environments of a runtime."""
        owner.ended += 1
        sandboxes = list(owner.sandboxes.values())
        owner.sandboxes.clear()
        if sandboxes:
            log.warning("%d environments of %s are ended: %s", len(sandboxes), owner.name, reason)
        for sandbox in sandboxes:
            sandbox.lose(reason)
        gone = await asyncio.gather(
            *(sandbox.destroy() for sandbox in sandboxes), return_exceptions=True
        )
        for error in (e for e in gone if isinstance(e, Exception)):
            log.warning("an environment could not be ended: %s", error)
        owner.ending = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._lease / _LOOKS)
            now = time.monotonic()
            for owner in self._owners:
                if not owner.sandboxes:
                    continue
                if now > owner.until:
                    self._begin_end(owner, f"no contact for {self._lease:g} s")
                elif not owner.online and now - owner.offline > self._orphans:
                    self._begin_end(owner, f"its runtime is gone for {self._orphans:g} s")

    async def _pings(self) -> None:
        await keep_alive(self._sandboxes, self._lease / _PINGS)

    def _sandboxes(self) -> list[LiveSandbox]:
        return [sandbox for owner in self._owners for sandbox in owner.sandboxes.values()]

    # --- messages to runtimes -------------------------------------------------------------

    def _from(self, owner: str) -> str:
        return f"{self._prefix}/from/{self.id}/{owner}"

    async def _publish(self, owner: str, data: bytes) -> None:
        await self._link.publish(self._from(owner), data)

    async def _send(self, job: Job, data: bytes) -> None:
        with contextlib.suppress(NotConnected):  # sent again when we are back, or when asked again
            await self._link.publish(job.reply_to, data, correlation=job.correlation)

    async def _part(self, owner: OwnerSession, number: int, data: bytes) -> None:
        if (job := owner.jobs.get(number)) is not None:
            await self._send(job, data)

    async def _on_up(self) -> None:
        self._last_status = None
        await self._publish_status()
        for owner in self._owners:
            for job in list(owner.jobs.values()):
                if job.answer is not None:
                    self._spawn(self._send(job, job.answer))

    async def _statuses(self) -> None:
        while True:
            await asyncio.sleep(_STATUS_SECONDS)
            with contextlib.suppress(NotConnected):
                await self._publish_status()

    async def _publish_status(self) -> None:
        known = [o.provider for o in self._owners if o.provider and o.provider.done()]
        for provider in known[:1]:
            with contextlib.suppress(SandboxError):
                self._images = await provider.result().images()
        status = HostStatus(
            name=self._name,
            provider=self._kind,
            most=self._limits.most,
            used=self.used,
            images=self._images,
            lease=self._lease,
        )
        if status != self._last_status:
            topic = f"{self._prefix}/hosts/{self.id}"
            await self._link.publish(topic, status.model_dump_json().encode(), retain=True)
            self._last_status = status

    def _spawn(self, work: Awaitable[None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task


__all__ = ["SandboxHost"]
