"""Records that a runtime keeps of sandbox hosts and of requests to them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from drawloom.environments import Env
from drawloom.sandbox.remote.lease import LEASE
from drawloom.sandbox.remote.messages import Answer, HostStatus


@dataclass(slots=True, eq=False)
class RemoteHost:
    """Keep what a runtime knows of a host.

    Attributes:
        status: its last status; None when it has stopped.
        lease: seconds of its leases.
        heard: when its last beat came.
        term: counts how many times it was given up.
        making: environments that are being made there.
        lost: it was given up, or has not been heard yet.
        sandboxes: ids of our environments there.
        settled: numbers of answered requests that it may forget.
    """

    id: str
    status: HostStatus | None = None
    lease: float = LEASE
    heard: float = 0.0
    term: int = 0
    making: int = 0
    lost: bool = True
    sandboxes: set[str] = field(default_factory=set)
    settled: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.id.rpartition(".")[0]

    def ready(self, now: float) -> bool:
        """Return True if new work may go there."""
        return self.status is not None and not self.lost and now - self.heard < self.lease / 2

    def has(self, env: Env) -> bool:
        """Return True if an environment's image is there."""
        images = self.status.images if self.status is not None else []
        return images is None or env.image in images

    @property
    def load(self) -> float:
        assert self.status is not None
        return (max(self.status.used, len(self.sandboxes)) + self.making) / self.status.most


@dataclass(slots=True, eq=False)
class PendingRequest:
    """Keep a request that is not answered yet.

    Attributes:
        box: id of its environment.
        data: the message, to send again.
        parts: pieces of output that have arrived.
    """

    host: RemoteHost
    box: str
    data: bytes
    answer: "asyncio.Future[tuple[Answer, bytes]]"
    on_part: Callable[[bytes], None] | None
    parts: int = 0


__all__ = ["PendingRequest", "RemoteHost"]
