"""What the warm pool keeps of each key, and what it counts."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from drawloom.environments import Env
from drawloom.leases import EnvLease
from drawloom.sandbox.api.sandbox import LiveSandbox


@dataclass(slots=True)
class PoolCounters:
    """Since the start. Seconds of stall are waited by programs, cold ones spent on making."""

    created: int = 0
    destroyed: int = 0
    failed: int = 0
    claims: int = 0
    warm_claims: int = 0
    parked: int = 0
    restored: int = 0
    stall_seconds: float = 0.0
    cold_seconds: float = 0.0
    idle_seconds: float = 0.0


@dataclass(slots=True)
class Warm:
    """A ready environment, since when, and the seconds that making it took."""

    box: LiveSandbox
    ready: float
    cold: float


@dataclass(slots=True)
class Shelf:
    """The environments of one key; or the one of a program that comes back from a snapshot. `cold`
    is what making one took lately, in seconds. `template` is a snapshot of one that was set up,
    which the next begin from; `keeping`: one is being made of the first, or there will be none."""

    env: Env
    snapshot: str | None = None
    template: str | None = None
    keeping: bool = False
    target: int = 0
    warm: deque[Warm] = field(default_factory=deque)
    creating: int = 0
    cold: float = 0.0
    waiting: deque["asyncio.Future[Warm]"] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class Claimed:
    """An environment that a program has."""

    box: LiveSandbox
    lease: EnvLease


__all__ = ["Claimed", "PoolCounters", "Shelf", "Warm"]
