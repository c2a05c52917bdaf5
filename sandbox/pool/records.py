"""Records of the warm pool: its counters, ready environments, one key's environments."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from drawloom.environments import Env
from drawloom.sandbox.api.sandbox import LiveSandbox


@dataclass(slots=True)
class PoolCounters:
    """Count what happened since the pool was opened.

    Attributes:
        created, destroyed, failed: environments made, removed, and not made because of an error.
        claims, warm_claims: environments handed out; those of them that were ready.
        parked, restored: environments that were kept as a snapshot, and made of one again.
        cold_seconds: time that making the claimed environments took.
        idle_seconds: time that environments were ready and unused.
    """

    created: int = 0
    destroyed: int = 0
    failed: int = 0
    claims: int = 0
    warm_claims: int = 0
    parked: int = 0
    restored: int = 0
    cold_seconds: float = 0.0
    idle_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class WarmSandbox:
    """Describe an environment that the pool hands out.

    Attributes:
        ready_at: when it became ready, by the pool's clock.
        create_seconds: how long making it took.
        was_ready: whether it was there before it was asked for.
    """

    sandbox: LiveSandbox
    ready_at: float
    create_seconds: float
    was_ready: bool = False


@dataclass(slots=True, eq=False)
class EnvPool:
    """Keep the environments of one key; or the single one that is restored from a snapshot.

    Attributes:
        snapshot: the snapshot to restore; None for a key's environments.
        template: snapshot of one after its setup, which the next ones are forked from.
        template_pending: a template is being made, or there will be none.
        target: how many to keep ready.
        creating: how many are being made now.
        create_seconds: moving average of how long making one takes; 0 before the first.
    """

    env: Env
    snapshot: str | None = None
    template: str | None = None
    template_pending: bool = False
    target: int = 0
    warm: deque[WarmSandbox] = field(default_factory=deque)
    creating: int = 0
    create_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Waiter:
    """Wait for the next environment of one `EnvPool`."""

    pool: EnvPool
    future: "asyncio.Future[WarmSandbox]"


__all__ = ["EnvPool", "PoolCounters", "Waiter", "WarmSandbox"]
