"""KV actions of the scheduler, carried out at simulated engines."""

from collections.abc import Callable
from typing import Any

from drawloom.runtime.scheduler.actions import DemoteKV, LeaseKV, MoveKV, PrefetchKV, ReleaseKV
from drawloom.runtime.scheduler.handlers import handles
from drawloom.runtime.sim.sim_engines import SimEngines


class KVActions:
    """Carry out leases, copies and moves of KV.

    Args:
        engines: of the simulation.
        at: adds to the simulation's agenda: a time, what to call then, and with what.
    """

    def __init__(
        self, engines: SimEngines, at: Callable[[float, Callable[[Any], None], object], None]
    ) -> None:
        self._engines, self._at = engines, at
        self._moving: dict[str, tuple[str, float]] = {}

    def arrival(self, conversation: str) -> float:
        """Return when a conversation's KV arrives at its engine; now if it is not on its way."""
        return self._moving.get(conversation, ("", self._engines.now))[1]

    @handles(LeaseKV)
    def lease(self, action: LeaseKV) -> None:
        """Lease a conversation's KV."""
        cache = self._engines.at(action.engine).cache
        cache.lease(action.conversation, self._engines.now, action.ttl, action.value)

    @handles(ReleaseKV)
    def release(self, action: ReleaseKV) -> None:
        """Release a conversation's KV, wherever it is."""
        cache = self._engines.at(action.engine).cache
        cache.release(action.conversation, evict=action.evict)
        if self._moving.get(action.conversation, ("", 0.0))[0] == action.engine:
            del self._moving[action.conversation]

    @handles(DemoteKV)
    def demote(self, action: DemoteKV) -> None:
        """Copy a conversation's KV to host memory."""
        self._engines.at(action.engine).cache.demote(action.conversation)

    @handles(PrefetchKV)
    def prefetch(self, action: PrefetchKV) -> None:
        """Copy a conversation's KV back from host memory."""
        self._engines.at(action.engine).cache.prefetch(action.conversation)

    @handles(MoveKV)
    def move(self, action: MoveKV) -> None:
        """Take a conversation's KV on its way to another engine."""
        units, there = self._engines.move(action.engine, action.conversation)
        self._moving[action.conversation] = (action.target, there)
        self._at(there, self._arrived, (action, units, there))

    def _arrived(self, what: tuple[MoveKV, list[int], float]) -> None:
        action, units, there = what
        if self._moving.get(action.conversation) == (action.target, there):  # it has not ended
            del self._moving[action.conversation]
            self._engines.arrive(action.target, action.conversation, units)


__all__ = ["KVActions"]
