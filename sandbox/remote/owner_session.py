"""A runtime as a sandbox host sees it."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox


@dataclass(slots=True)
class Job:
    """One numbered request: `answer` is set when it was carried out."""

    task: "asyncio.Task[None]"
    reply_to: str
    correlation: bytes
    answer: bytes | None = None


@dataclass(slots=True)
class Owner:
    """A runtime, and what it has here."""

    name: str
    online: bool = False
    offline: float = 0.0
    epoch: int = -1
    term: int = -1
    low: int = 0
    until: float = 0.0
    settled: set[int] = field(default_factory=set)
    jobs: dict[int, Job] = field(default_factory=dict)
    boxes: dict[str, LiveSandbox] = field(default_factory=dict)
    making: dict[str, "asyncio.Task[Any]"] = field(default_factory=dict)
    leaving: set["asyncio.Task[None]"] = field(default_factory=set)
    ended: int = 0
    ending: "asyncio.Task[None] | None" = None
    provider: "asyncio.Task[Provider] | None" = None

    @property
    def idle(self) -> bool:
        """Whether nothing is lost when this record is."""
        busy = self.boxes or self.making or self.leaving or self.ending is not None
        return not busy and all(job.answer is not None for job in self.jobs.values())

    def settle(self, low: int, settled: list[int]) -> None:
        """The runtime has these answers; they will not be asked for again."""
        self.low = max(self.low, low)
        self.settled.update(settled)
        self.settled = {n for n in self.settled if n >= self.low}
        for number in [n for n in self.jobs if n < self.low or n in self.settled]:
            self.leave(self.jobs.pop(number))

    def leave(self, job: Job) -> None:
        """Nobody waits for this any more; what it started goes on, and is kept by its key."""
        if job.answer is None:
            job.task.cancel()
            self.leaving.add(job.task)
            job.task.add_done_callback(self.leaving.discard)


class Owners:
    """The runtimes that have asked something of a host, at most so many: beyond that those that
    have nothing here are forgotten. `on_forgotten` is given each."""

    def __init__(self, most: int, on_forgotten: Callable[[Owner], None]) -> None:
        self._most, self._on_forgotten = most, on_forgotten
        self._known: dict[str, Owner] = {}

    def __iter__(self) -> Iterator[Owner]:
        """Iterate over a copy: meanwhile some may come and go."""
        return iter(list(self._known.values()))

    def get(self, name: str) -> Owner | None:
        return self._known.get(name)

    def admit(self, name: str) -> Owner | None:
        """The record of a runtime, made if there is none; None when all there is room for are at
        work."""
        found = self._known.get(name)
        if found is not None:
            return found
        if len(self._known) >= self._most:
            idle = (owner for owner in self if owner.idle)
            # first those that never answered a beat: anybody may claim to be many
            forgotten = min(idle, key=lambda owner: owner.until, default=None)
            if forgotten is None:
                return None
            del self._known[forgotten.name]
            self._on_forgotten(forgotten)
        made = self._known[name] = Owner(name, online=True)  # it has just spoken
        return made


__all__ = ["Job", "Owner", "Owners"]
