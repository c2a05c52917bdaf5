"""Records that a sandbox host keeps of its runtimes."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox


@dataclass(slots=True)
class Job:
    """Keep one numbered request while its runtime may ask for the answer.

    Attributes:
        reply_to, correlation: topic and correlation data of the answer.
        answer: set when the request was carried out.
    """

    task: "asyncio.Task[None]"
    reply_to: str
    correlation: bytes
    answer: bytes | None = None


@dataclass(slots=True)
class OwnerSession:
    """Keep a runtime's lease, requests and environments.

    Attributes:
        offline: when it was last known to go offline.
        epoch, term, low, settled: see `Request`.
        until: when its lease ends.
        sandboxes: its environments, by id.
        making: environments that are being made, by id.
        leaving: requests that nobody waits for any more.
        ended: how many times all environments were ended.
        ending: ends them now.
        provider: opens its provider.
    """

    name: str
    online: bool = False
    offline: float = 0.0
    epoch: int = -1
    term: int = -1
    low: int = 0
    until: float = 0.0
    settled: set[int] = field(default_factory=set)
    jobs: dict[int, Job] = field(default_factory=dict)
    sandboxes: dict[str, LiveSandbox] = field(default_factory=dict)
    making: dict[str, "asyncio.Task[Any]"] = field(default_factory=dict)
    leaving: set["asyncio.Task[None]"] = field(default_factory=set)
    ended: int = 0
    ending: "asyncio.Task[None] | None" = None
    provider: "asyncio.Task[Provider] | None" = None

    @property
    def idle(self) -> bool:
        """Return True if nothing is lost with this record."""
        busy = self.sandboxes or self.making or self.leaving or self.ending is not None
        return not busy and all(job.answer is not None for job in self.jobs.values())

    def settle(self, low: int, settled: list[int]) -> None:
        """Forget the requests whose answers the runtime has."""
        self.low = max(self.low, low)
        self.settled.update(settled)
        self.settled = {n for n in self.settled if n >= self.low}
        for number in [n for n in self.jobs if n < self.low or n in self.settled]:
            self.leave(self.jobs.pop(number))

    def leave(self, job: Job) -> None:
        """Stop waiting for a request; the command that it started goes on, by its key."""
        if job.answer is None:
            job.task.cancel()
            self.leaving.add(job.task)
            job.task.add_done_callback(self.leaving.discard)


class OwnerSessions:
    """Keep the records of the runtimes that have sent requests.

    Args:
        most: records that are kept; beyond that, idle ones are forgotten.
        on_forgotten: called with each record that is forgotten.
    """

    def __init__(self, most: int, on_forgotten: Callable[[OwnerSession], None]) -> None:
        self._most, self._on_forgotten = most, on_forgotten
        self._known: dict[str, OwnerSession] = {}

    def __iter__(self) -> Iterator[OwnerSession]:
        """Iterate over a copy of the records: meanwhile some may come and go."""
        return iter(list(self._known.values()))

    def get(self, name: str) -> OwnerSession | None:
        """Return the record of a runtime, if there is one."""
        return self._known.get(name)

    def admit(self, name: str) -> OwnerSession | None:
        """Return the record of a runtime, made if there is none; None if all are at work."""
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
        made = self._known[name] = OwnerSession(name, online=True)  # it has just spoken
        return made


__all__ = ["Job", "OwnerSession", "OwnerSessions"]
