"""The beats of a sandbox host: what its runtimes know it by, and lease it by their answers."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from drawloom.sandbox.remote.broker import NotConnected
from drawloom.sandbox.remote.messages import Beat, pack
from drawloom.sandbox.remote.owner import Owner, Owners

_EACH_LEASE = 6
_MOST_STRANGERS = 256


class Beats:
    """Beats for runtimes that have something here, and for those that are online and have asked for
    nothing yet, so that they find this host. `publish` sends to a runtime by its name."""

    def __init__(
        self, lease: float, owners: Owners, publish: Callable[[str, bytes], Awaitable[None]]
    ) -> None:
        self._lease, self._owners, self._publish = lease, owners, publish
        self._strangers: dict[str, None] = {}
        self._met = asyncio.Event()
        self._number = 0
        self._sent: dict[int, float] = {}

    def sent(self, number: int) -> float | None:
        """When a beat was sent, if that is no longer ago than a lease."""
        return self._sent.get(number)

    def meet(self, name: str) -> None:
        """A runtime is online. Of those that never asked for anything only the last are kept:
        anybody may claim to be many."""
        self._strangers.pop(name, None)
        while len(self._strangers) >= _MOST_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[name] = None
        self._met.set()

    def leave(self, name: str) -> None:
        """A runtime is offline, or has a record now."""
        self._strangers.pop(name, None)

    async def regular(self) -> None:
        while True:
            number = self._next()
            known = [owner for owner in self._owners if owner.online or owner.boxes]
            await asyncio.gather(*(self._beat(owner.name, number, owner) for owner in known))
            self._met.set()
            await asyncio.sleep(self._lease / _EACH_LEASE)

    async def greetings(self) -> None:
        """One after the other, so that a crowd of them holds nobody up."""
        while True:
            await self._met.wait()
            self._met.clear()
            for name in list(self._strangers):
                owner = self._owners.get(name)
                if owner is not None:
                    self._strangers.pop(name, None)
                await self._beat(name, self._next(), owner)

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
