"""Execution of runtimes' requests on a sandbox host, as calls of a provider."""

import asyncio
from collections.abc import Awaitable, Callable

from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.remote.host_limits import HostLimits
from drawloom.sandbox.remote.messages import Answer, Part, Request, cut, pack
from drawloom.sandbox.remote.owner_session import OwnerSession, OwnerSessions

_NEEDS_BOX = ("create", "fork", "adopt", "destroy", "snapshot", "call", "tell")
_NEEDS_NAME = ("fork", "snapshot", "discard")
Tell = Callable[[bytes], Awaitable[None]]


class HostWorker:
    """Carry out requests of runtimes, within the limits of the host.

    Args:
        open_provider: makes the provider for one runtime's environments, given its name.
        owners: the runtimes, with their environments.
        network: whether environments may have a network.
    """

    def __init__(
        self,
        name: str,
        open_provider: Callable[[str], Awaitable[Provider]],
        owners: OwnerSessions,
        limits: HostLimits,
        network: bool,
    ) -> None:
        self._name, self._open, self._owners = name, open_provider, owners
        self._limits, self._network = limits, network
        self.creating: list[Env] = []

    @property
    def used(self) -> int:
        """Return how many environments exist or are being made, sidecars included."""
        return self._limits.taken(self._envs)

    @property
    def _envs(self) -> list[Env]:
        return self.creating + [
            sandbox.env for owner in self._owners for sandbox in owner.sandboxes.values()
        ]

    async def carry_out(
        self, owner: OwnerSession, request: Request, body: bytes, tell: Tell
    ) -> tuple[Answer, bytes]:
        """Carry out a request and return its answer, with the bytes that follow it.

        Args:
            body: the bytes that followed the request.
            tell: sends pieces of output before the answer.

        Raises:
            DrawloomError: the request failed.
        """
        for given, wanted in ((request.box, _NEEDS_BOX), (request.name, _NEEDS_NAME)):
            if request.op in wanted and not given:
                raise SandboxError(f"request {request.op} names no environment or no snapshot")
        if request.op in ("call", "tell"):
            return await self._speak(owner, request, body, tell)
        provider = await self._provider(owner)
        if request.op in ("create", "fork", "adopt"):
            return await self._make(owner, provider, request), b""
        if request.op == "destroy":
            if (making := owner.making.get(request.box)) is not None:
                making.cancel()
                await asyncio.gather(making, return_exceptions=True)
            owner.sandboxes.pop(request.box, None)
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
        self, owner: OwnerSession, request: Request, body: bytes, tell: Tell
    ) -> tuple[Answer, bytes]:
        sandbox = owner.sandboxes.get(request.box)
        if sandbox is None:
            raise SandboxDied(f"environment {request.box} is gone from host {self._name}")
        pieces = cut(body, request.sizes)
        if request.op == "tell":
            await sandbox.wire.tell(request.head, *pieces)
            return Answer(), b""
        parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        sending = asyncio.create_task(_send_parts(tell, parts))
        try:
            reply = await sandbox.wire.call(
                request.head,
                *pieces,
                timeout=request.timeout,
                on_part=parts.put_nowait if request.stream else None,
            )
        finally:
            parts.put_nowait(None)
            await sending
        return Answer(reply=reply.kind, numbers=list(reply.numbers)), reply.data

    async def _make(self, owner: OwnerSession, provider: Provider, request: Request) -> Answer:
        env, generation = request.env, owner.ended
        if env is None:
            raise SandboxError(f"{request.op} needs an Env")
        self._check_limits(env)
        making = asyncio.ensure_future(self._made(owner, provider, request, env))
        owner.making[request.box] = making
        self.creating.append(env)
        try:
            sandbox = await asyncio.shield(making)
            if generation != owner.ended:
                await sandbox.destroy()
                raise SandboxDied(f"environment {request.box}: {self._name} was given up meanwhile")
            owner.sandboxes[request.box] = sandbox
        except asyncio.CancelledError:
            if making.cancelled():  # it was destroyed before it was there
                raise SandboxDied(f"environment {request.box} was destroyed") from None
            making.cancel()
            raise
        finally:
            self.creating.remove(env)
            owner.making.pop(request.box, None)
        return Answer(numbers=[sandbox.isolation], said="\n".join(sandbox.lacking))

    @staticmethod
    async def _made(
        owner: OwnerSession, provider: Provider, request: Request, env: Env
    ) -> LiveSandbox:
        if request.op == "create":
            return await provider.create(env, request.box)
        if request.op == "fork":
            return await provider.fork(env, request.name, request.box)
        return owner.sandboxes.get(request.box) or await provider.adopt(env, request.box)

    def _check_limits(self, env: Env) -> None:
        if lacking := self._limits.lacks(env, self._envs):
            raise SandboxError(f"sandbox host {self._name} is full: {lacking}")
        if env.network and not self._network:
            raise SandboxError(
                f"sandbox host {self._name} gives no network: drawloom sandbox host --network"
            )

    async def _provider(self, owner: OwnerSession) -> Provider:
        if owner.provider is None or (owner.provider.done() and owner.provider.exception()):
            owner.provider = asyncio.ensure_future(self._opened(owner.name))
        return await asyncio.shield(owner.provider)

    async def _opened(self, owner: str) -> Provider:
        """Open a runtime's provider; destroy what an earlier start of this host left."""
        provider = await self._open(f"{owner}@{self._name}")
        for sandbox in await provider.owned():
            await provider.destroy(sandbox.id)
        return provider


async def _send_parts(tell: Tell, parts: "asyncio.Queue[bytes | None]") -> None:
    """Send pieces of output, one at a time; the answer has all of it anyway."""
    index = 0
    while (data := await parts.get()) is not None:
        await tell(pack(Part(index=index), data))
        index += 1


__all__ = ["HostWorker"]
