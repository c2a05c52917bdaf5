"""Heartbeats of a sandbox host, which runtimes answer to renew their leases."""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

from drawloom.sandbox.remote.broker import NotConnected
from drawloom.sandbox.remote.messages import Beat, pack
from drawloom.sandbox.remote.owner_session import OwnerSession, OwnerSessions

_EACH_LEASE = 6
_MOST_STRANGERS = 32


class Heartbeats:
    """Send heartbeats to the runtimes of a host.

    Runtimes that work here, or have answered lately, get theirs in time. All others, of which
    anybody may pretend to be many, get theirs one after the other, so that they find this host.

    Args:
        lease: seconds that an answer renews.
        publish: sends bytes to a runtime by its name.
    """

    def __init__(
        self, lease: float, owners: OwnerSessions, publish: Callable[[str, bytes], Awaitable[None]]
    ) -> None:
        self._lease, self._owners, self._publish = lease, owners, publish
        self._strangers: dict[str, None] = {}
        self._fresh: deque[str] = deque(maxlen=_MOST_STRANGERS)
        self._met = asyncio.Event()
        self._number = 0
        self._sent: dict[int, float] = {}

    def sent(self, number: int) -> float | None:
        """Return when a beat was sent; None if that is longer ago than a lease."""
        return self._sent.get(number)

    def meet(self, name: str) -> None:
        """Greet a runtime that is online; only the last strangers are remembered."""
        self._strangers.pop(name, None)
        while len(self._strangers) >= _MOST_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        if self._owners.get(name) is None:
            self._strangers[name] = None
        self._fresh.append(name)
        self._met.set()

    def leave(self, name: str) -> None:
        """Forget a stranger: it is offline, or has a record now."""
        self._strangers.pop(name, None)

    def _near(self, owner: OwnerSession) -> bool:
        answered = owner.online and time.monotonic() < owner.until + self._lease
        return bool(owner.sandboxes or owner.making or answered)

    async def regular(self) -> None:
        """Beat regularly for the runtimes that work here, for ever."""
        while True:
            number = self._next()
            near = [owner for owner in self._owners if self._near(owner)]
            await asyncio.gather(*(self._beat(owner.name, number, owner) for owner in near))
            self._met.set()
            await asyncio.sleep(self._lease / _EACH_LEASE)

    async def greetings(self) -> None:
        """Beat for all other runtimes that are online, one after the other, for ever."""
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

    async def _beat(self, name: str, number: int, owner: OwnerSession | None) -> None:
        with contextlib.suppress(NotConnected):
            await self._publish(name, pack(Beat(number=number)))
            if owner is not None and not owner.online:
                owner.until = max(owner.until, self._sent.get(number, 0.0) + self._lease)


__all__ = ["Heartbeats"]
