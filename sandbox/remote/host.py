"""A machine that offers its environments to runtimes over a broker."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable

from aiomqtt import Message as MqttMessage
from pydantic import ValidationError

from drawloom.environments import Env
from drawloom.errors import DrawloomError, SandboxDied, SandboxError
from drawloom.ids import new_id
from drawloom.sandbox.base import Provider
from drawloom.sandbox.live import LiveSandbox
from drawloom.sandbox.remote.broker import Broker, Link, NotConnected, payload
from drawloom.sandbox.remote.lease import LEASE
from drawloom.sandbox.remote.messages import (
    Answer,
    Beat,
    Bye,
    Grant,
    HostStatus,
    Malformed,
    OwnerStatus,
    Part,
    Request,
    cut,
    pack,
    unpack,
)
from drawloom.sandbox.remote.owner import Job, Owner
from drawloom.sandbox.watch import keep_alive

log = logging.getLogger("drawloom.sandbox")

_BEATS, _LOOKS, _PINGS = 6, 20, 8
_STATUS_SECONDS = 5.0
_CONNECT_SECONDS = 15.0
_OWNER = re.compile(r"[A-Za-z0-9-]{1,64}")  # it becomes the name of a folder


class SandboxHost:
    """Serves runtimes until it is closed: ``async with SandboxHost(…)``.

    Args:
        name: what it is called; each start is another host to its runtimes.
        open_provider: makes the provider for one runtime's environments, given its name.
        most: most environments at a time, of all runtimes.
        network: whether environments may have a network.
        lease: seconds without contact after which it ends its work.
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
        network: bool = False,
        lease: float = LEASE,
        orphans: float = 600.0,
    ) -> None:
        if not name or any(c in name for c in "/+#\0"):
            raise SandboxError(f"{name!r} is no name for a sandbox host: no /, + or # in it")
        self.id = f"{name}.{new_id('h').removeprefix('h-')}"
        self._open, self._images = open_provider, images
        self._name, self._kind, self._most, self._network = name, kind, most, network
        self._lease, self._orphans = lease, orphans
        self._owners: dict[str, Owner] = {}
        self._creating = self._beat = 0
        self._told: HostStatus | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._prefix = broker.prefix
        mine = f"{self._prefix}/hosts/{self.id}"
        topics = [f"{self._prefix}/to/{self.id}/+", f"{self._prefix}/owners/+"]
        self._link = Link(broker, self.id, (mine, b""), topics, self._heard, self._on_up)

    async def __aenter__(self) -> "SandboxHost":
        await self._link.open(_CONNECT_SECONDS)
        for loop in (self._beats(), self._watch(), self._statuses(), self._pings()):
            self._spawn(loop)
        return self

    async def __aexit__(self, *_: object) -> None:
        endings = {owner.ending for owner in self._owners.values() if owner.ending is not None}
        for task in self._work - endings:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        for owner in self._owners.values():
            await self._end(owner, "its host was stopped")
            with contextlib.suppress(NotConnected):
                await self._link.publish(self._from(owner), pack(Bye()))
            if owner.provider is not None:
                (provider,) = await asyncio.gather(owner.provider, return_exceptions=True)
                if not isinstance(provider, BaseException):
                    await provider.close()
        with contextlib.suppress(NotConnected):
            await self._link.publish(f"{self._prefix}/hosts/{self.id}", b"", retain=True)
        await self._link.close()

    @property
    def used(self) -> int:
        return self._creating + sum(len(owner.boxes) for owner in self._owners.values())

    # --- what it hears --------------------------------------------------------------------

    def _heard(self, message: MqttMessage) -> None:
        *_, kind, last = str(message.topic).removeprefix(f"{self._prefix}/").split("/")
        if not _OWNER.fullmatch(last):
            return
        try:
            if kind == "owners":
                self._presence(last, payload(message))
            else:
                said, body = unpack(payload(message))
                self._told_by(self._owners.setdefault(last, Owner(last)), said, body, message)
        except (Malformed, ValidationError) as error:
            log.warning("a message on %s is not understood: %s", message.topic, error)

    def _presence(self, name: str, data: bytes) -> None:
        if not data:
            return  # nothing is kept of it any more; it was said before that it is gone
        status = OwnerStatus.model_validate_json(data)
        owner = self._owners.setdefault(name, Owner(name))
        if status.epoch < owner.epoch:
            return
        if owner.online and not status.online:
            owner.offline = time.monotonic()
        owner.online = status.online
        if owner.online:
            self._beat += 1
            self._spawn(self._beat_to(owner, self._beat))

    def _told_by(self, owner: Owner, said: object, body: bytes, message: MqttMessage) -> None:
        if isinstance(said, Grant) and self._leads(owner, said.epoch, said.term):
            owner.settle(said.low, said.settled)
            if (sent := owner.sent.get(said.beat)) is not None:
                owner.until = max(owner.until, sent + self._lease)
        elif isinstance(said, Request) and self._leads(owner, said.epoch, said.term):
            owner.settle(said.low, said.settled)
            self._request(owner, said, body, message)

    def _leads(self, owner: Owner, epoch: int, term: int) -> bool:
        """Whether what an incarnation of a runtime says still counts; a later one takes over, and a
        later term ends what was under the one before."""
        if epoch < owner.epoch or (epoch == owner.epoch and term < owner.term):
            return False
        if epoch > owner.epoch:
            for job in owner.jobs.values():
                owner.leave(job)
            owner.epoch, owner.low, owner.jobs, owner.settled = epoch, 0, {}, set()
        elif term > owner.term >= 0 and (owner.boxes or self._creating):
            self._begin_end(owner, "its runtime had given this host up")
        owner.term = term
        return True

    def _request(self, owner: Owner, request: Request, body: bytes, message: MqttMessage) -> None:
        number = request.number
        if time.monotonic() > owner.until or number < owner.low or number in owner.settled:
            return  # without a lease nothing is begun; it is sent again until it is answered
        job = owner.jobs.get(number)
        if job is None:
            task = self._spawn(self._carry_out(owner, request, body))
            mine = self._from(owner)
            asked = str(getattr(message.properties, "ResponseTopic", mine))
            reply_to = asked if asked.startswith(mine) else mine
            correlation = getattr(message.properties, "CorrelationData", b"")
            owner.jobs[number] = Job(task, reply_to, correlation)
        elif job.answer is not None:
            self._spawn(self._send(job, job.answer))

    # --- what it does ---------------------------------------------------------------------

    async def _carry_out(self, owner: Owner, request: Request, body: bytes) -> None:
        if owner.ending is not None:
            await owner.ending
        if owner.leaving:
            await asyncio.wait(set(owner.leaving))
        data = b""
        try:
            answer, data = await self._do(owner, request, body)
        except DrawloomError as error:
            answer = Answer(error=type(error).__name__, said=str(error))
        except Malformed as error:
            answer = Answer(error=SandboxError.__name__, said=str(error))
        except Exception as error:  # of the host's own making: the runtime must hear of it
            log.exception("request %s of %s", request.op, owner.name)
            answer = Answer(error=SandboxError.__name__, said=f"host {self._name}: {error!r}")
        job = owner.jobs.get(request.number)
        if job is not None:
            job.answer = pack(answer, data)
            await self._send(job, job.answer)

    async def _do(self, owner: Owner, request: Request, body: bytes) -> tuple[Answer, bytes]:
        if request.op in ("call", "tell"):
            return await self._speak(owner, request, body)
        provider = await self._provider(owner)
        if request.op in ("create", "fork", "adopt"):
            return await self._make(owner, provider, request), b""
        if request.op == "destroy":
            if (making := owner.making.get(request.box)) is not None:
                making.cancel()
                await asyncio.gather(making, return_exceptions=True)
            owner.boxes.pop(request.box, None)
            await provider.destroy(request.box)
        elif request.op == "discard":
            await provider.discard(request.name)
        elif request.op == "snapshot":
            kept = await provider.snapshot(request.box, request.name)
            return Answer(rows=[(kept.id, kept.key, float(kept.size))]), b""
        elif request.op == "written":
            sizes = await provider.written()
            return Answer(rows=[(id, "", float(size)) for id, size in sizes.items()]), b""
        else:
            listed = provider.owned if request.op == "owned" else provider.snapshots
            found = [(each.id, each.key, each.created) for each in await listed()]
            return Answer(rows=found), b""
        return Answer(), b""

    async def _speak(self, owner: Owner, request: Request, body: bytes) -> tuple[Answer, bytes]:
        box = owner.boxes.get(request.box)
        if box is None:
            raise SandboxDied(f"environment {request.box} is gone from host {self._name}")
        pieces = cut(body, request.sizes)
        if request.op == "tell":
            await box.wire.tell(request.head, *pieces)
            return Answer(), b""
        parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        job = owner.jobs[request.number]
        sending = asyncio.create_task(self._parts(job, parts))
        try:
            reply = await box.wire.call(
                request.head,
                *pieces,
                timeout=request.timeout,
                on_part=parts.put_nowait if request.stream else None,
            )
        finally:
            parts.put_nowait(None)
            await sending
        return Answer(reply=reply.kind, numbers=list(reply.numbers)), reply.data

    async def _parts(self, job: Job, parts: "asyncio.Queue[bytes | None]") -> None:
        """Each when the broker has the one before. They are hints: the answer has everything."""
        index = 0
        while (data := await parts.get()) is not None:
            await self._send(job, pack(Part(index=index), data))
            index += 1

    async def _make(self, owner: Owner, provider: Provider, request: Request) -> Answer:
        env, generation = request.env, owner.ended
        if env is None:
            raise SandboxError(f"{request.op} needs an Env")
        self._may(env)
        making = asyncio.ensure_future(self._made(owner, provider, request, env))
        owner.making[request.box] = making
        self._creating += 1
        try:
            box = await asyncio.shield(making)
            if generation != owner.ended:
                await box.destroy()
                raise SandboxDied(f"environment {request.box}: {self._name} was given up meanwhile")
            owner.boxes[request.box] = box
        except asyncio.CancelledError:
            if making.cancelled():  # it was destroyed before it was there
                raise SandboxDied(f"environment {request.box} was destroyed") from None
            making.cancel()
            raise
        finally:
            self._creating -= 1
            owner.making.pop(request.box, None)
        return Answer(numbers=[box.isolation], said="\n".join(box.lacking))

    @staticmethod
    async def _made(owner: Owner, provider: Provider, request: Request, env: Env) -> LiveSandbox:
        if request.op == "create":
            return await provider.create(env, request.box)
        if request.op == "fork":
            return await provider.fork(env, request.name, request.box)
        return owner.boxes.get(request.box) or await provider.adopt(env, request.box)

    def _may(self, env: Env) -> None:
        if self.used >= self._most:
            raise SandboxError(f"sandbox host {self._name} is full: {self._most} environments")
        if env.network and not self._network:
            raise SandboxError(
                f"sandbox host {self._name} gives no network: drawloom sandbox host --network"
            )

    async def _provider(self, owner: Owner) -> Provider:
        if owner.provider is None or (owner.provider.done() and owner.provider.exception()):
            owner.provider = asyncio.ensure_future(self._opened(owner.name))
        return await asyncio.shield(owner.provider)

    async def _opened(self, owner: str) -> Provider:
        """What an earlier start of this host left is nobody's any more."""
        provider = await self._open(f"{owner}@{self._name}")
        for box in await provider.owned():
            await provider.destroy(box.id)
        return provider

    # --- leases ---------------------------------------------------------------------------

    def _begin_end(self, owner: Owner, reason: str) -> None:
        if owner.ending is None:
            owner.ending = self._spawn(self._end(owner, reason))

    async def _end(self, owner: Owner, reason: str) -> None:
        """End everything that a runtime has here."""
        owner.ended += 1
        boxes = list(owner.boxes.values())
        owner.boxes.clear()
        if boxes:
            log.warning("%d environments of %s are ended: %s", len(boxes), owner.name, reason)
        for box in boxes:
            box.lose(reason)
        gone = await asyncio.gather(*(box.destroy() for box in boxes), return_exceptions=True)
        for error in (e for e in gone if isinstance(e, Exception)):
            log.warning("an environment could not be ended: %s", error)
        owner.ending = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._lease / _LOOKS)
            now = time.monotonic()
            for owner in list(self._owners.values()):
                if not owner.boxes:
                    continue
                if now > owner.until:
                    self._begin_end(owner, f"no contact for {self._lease:g} s")
                elif not owner.online and now - owner.offline > self._orphans:
                    self._begin_end(owner, f"its runtime is gone for {self._orphans:g} s")

    async def _beats(self) -> None:
        while True:
            self._beat += 1
            for owner in list(self._owners.values()):
                if owner.online or owner.boxes:
                    self._spawn(self._beat_to(owner, self._beat))
            await asyncio.sleep(self._lease / _BEATS)

    async def _beat_to(self, owner: Owner, number: int) -> None:
        sent = owner.sent[number] = time.monotonic()
        owner.sent = {n: at for n, at in owner.sent.items() if sent - at < self._lease}
        with contextlib.suppress(NotConnected):
            await self._link.publish(self._from(owner), pack(Beat(number=number)))
            if not owner.online:
                owner.until = max(owner.until, sent + self._lease)

    async def _pings(self) -> None:
        boxes = lambda: [box for owner in self._owners.values() for box in owner.boxes.values()]  # noqa: E731
        await keep_alive(boxes, self._lease / _PINGS)

    # --- what it says ---------------------------------------------------------------------

    def _from(self, owner: Owner) -> str:
        return f"{self._prefix}/from/{self.id}/{owner.name}"

    async def _send(self, job: Job, data: bytes) -> None:
        with contextlib.suppress(NotConnected):  # sent again when we are back, or when asked again
            await self._link.publish(job.reply_to, data, correlation=job.correlation)

    async def _on_up(self) -> None:
        self._told = None
        await self._tell_status()
        for owner in self._owners.values():
            for job in list(owner.jobs.values()):
                if job.answer is not None:
                    self._spawn(self._send(job, job.answer))

    async def _statuses(self) -> None:
        while True:
            await asyncio.sleep(_STATUS_SECONDS)
            with contextlib.suppress(NotConnected):
                await self._tell_status()

    async def _tell_status(self) -> None:
        known = [o.provider for o in self._owners.values() if o.provider and o.provider.done()]
        for provider in known[:1]:
            with contextlib.suppress(SandboxError):
                self._images = await provider.result().images()
        status = HostStatus(
            name=self._name, provider=self._kind, most=self._most, used=self.used,
            images=self._images, lease=self._lease,
        )  # fmt: skip
        if status != self._told:
            topic = f"{self._prefix}/hosts/{self.id}"
            await self._link.publish(topic, status.model_dump_json().encode(), retain=True)
            self._told = status

    def _spawn(self, work: Awaitable[None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task


__all__ = ["SandboxHost"]
