"""The beats of a sandbox host: what its runtimes know it by, and lease it by their answers."""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

from drawloom.sandbox.remote.broker import NotConnected
from drawloom.sandbox.remote.messages import Beat, pack
from drawloom.sandbox.remote.owner_session import Owner, Owners

_EACH_LEASE = 6
_MOST_STRANGERS = 32


class Beats:
    """Beats for the runtimes of a host: in time for those that work here or have answered lately.
    Others, of which anybody may claim to be many, get theirs one after the other, so that they find
    this host. `publish` sends to a runtime by its name."""

    def __init__(
        self, lease: float, owners: Owners, publish: Callable[[str, bytes], Awaitable[None]]
    ) -> None:
        self._lease, self._owners, self._publish = lease, owners, publish
        self._strangers: dict[str, None] = {}
        self._fresh: deque[str] = deque(maxlen=_MOST_STRANGERS)
        self._met = asyncio.Event()
        self._number = 0
        self._sent: dict[int, float] = {}

    def sent(self, number: int) -> float | None:
        """When a beat was sent, if that is no longer ago than a lease."""
        return self._sent.get(number)

    def meet(self, name: str) -> None:
        """A runtime is online. Of those that never asked for anything only the last are kept."""
        self._strangers.pop(name, None)
        while len(self._strangers) >= _MOST_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        if self._owners.get(name) is None:
            self._strangers[name] = None
        self._fresh.append(name)
        self._met.set()

    def leave(self, name: str) -> None:
        """A runtime is offline, or has a record now."""
        self._strangers.pop(name, None)

    def _near(self, owner: Owner) -> bool:
        answered = owner.online and time.monotonic() < owner.until + self._lease
        return bool(owner.boxes or owner.making or answered)

    async def regular(self) -> None:
        while True:
            number = self._next()
            near = [owner for owner in self._owners if self._near(owner)]
            await asyncio.gather(*(self._beat(owner.name, number, owner) for owner in near))
            self._met.set()
            await asyncio.sleep(self._lease / _EACH_LEASE)

    async def greetings(self) -> None:
        while True:
            await self._met.wait()
            self._met.clear()
            far = [owner.name for owner in self._owners if owner.online and not self._near(owner)]
            some = random.sample(far, min(len(far), _MOST_STRANGERS))
            for name in (None, *self._strangers, *some):
                while self._fresh:  # who comes while a crowd is greeted does not wait for it
                    await self._greet(self._fresh.pop())
                if name is not None:
                    await self._greet(name)

    async def _greet(self, name: str) -> None:
        await self._beat(name, self._next(), self._owners.get(name))

    def _next(self) -> int:
        now = time.monotonic()
        self._number += 1
        self._sent = {n: at for n, at in self._sent.items() if now - at < self._lease}
        self._sent[self._number] = now
        return self._number

    async def _beat(self, name: str, number: int, owner: Owner | None) -> None:
        with contextlib.suppress(NotConnected):
            await self._publish(name, pack(Beat(number=number)))
            if owner is not None and not owner.online:
                owner.until = max(owner.until, self._sent.get(number, 0.0) + self._lease)


__all__ = ["Beats"]
