"""What a sandbox host does for its runtimes: requests become calls of a provider."""

import asyncio
from collections.abc import Awaitable, Callable

from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.remote.host_limits import Room
from drawloom.sandbox.remote.messages import Answer, Part, Request, cut, pack
from drawloom.sandbox.remote.owner_session import Owner, Owners

_NEEDS_BOX = ("create", "fork", "adopt", "destroy", "snapshot", "call", "tell")
_NEEDS_NAME = ("fork", "snapshot", "discard")
Tell = Callable[[bytes], Awaitable[None]]


class Worker:
    """Carries out requests, within the room of its host. `open_provider` makes the provider for one
    runtime's environments."""

    def __init__(
        self,
        name: str,
        open_provider: Callable[[str], Awaitable[Provider]],
        owners: Owners,
        room: Room,
        network: bool,
    ) -> None:
        self._name, self._open, self._owners = name, open_provider, owners
        self._room, self._network = room, network
        self.creating: list[Env] = []

    @property
    def used(self) -> int:
        """How many environments are here or being made, with those beside them."""
        return self._room.taken(self._envs)

    @property
    def _envs(self) -> list[Env]:
        return self.creating + [box.env for owner in self._owners for box in owner.boxes.values()]

    async def carry_out(
        self, owner: Owner, request: Request, body: bytes, tell: Tell
    ) -> tuple[Answer, bytes]:
        """Do what a runtime wants; `tell` sends what it may hear before the answer."""
        for given, wanted in ((request.box, _NEEDS_BOX), (request.name, _NEEDS_NAME)):
            if request.op in wanted and not given:
                raise SandboxError(f"{request.op} names nothing")
        if request.op in ("call", "tell"):
            return await self._speak(owner, request, body, tell)
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

    async def _speak(
        self, owner: Owner, request: Request, body: bytes, tell: Tell
    ) -> tuple[Answer, bytes]:
        box = owner.boxes.get(request.box)
        if box is None:
            raise SandboxDied(f"environment {request.box} is gone from host {self._name}")
        pieces = cut(body, request.sizes)
        if request.op == "tell":
            await box.wire.tell(request.head, *pieces)
            return Answer(), b""
        parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        sending = asyncio.create_task(_send_parts(tell, parts))
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

    async def _make(self, owner: Owner, provider: Provider, request: Request) -> Answer:
        env, generation = request.env, owner.ended
        if env is None:
            raise SandboxError(f"{request.op} needs an Env")
        self._may(env)
        making = asyncio.ensure_future(self._made(owner, provider, request, env))
        owner.making[request.box] = making
        self.creating.append(env)
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
            self.creating.remove(env)
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
        if lacking := self._room.lacks(env, self._envs):
            raise SandboxError(f"sandbox host {self._name} is full: {lacking}")
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


async def _send_parts(tell: Tell, parts: "asyncio.Queue[bytes | None]") -> None:
    """Each when the broker has the one before. They are hints: the answer has everything."""
    index = 0
    while (data := await parts.get()) is not None:
        await tell(pack(Part(index=index), data))
        index += 1


__all__ = ["Worker"]
