"""A sandbox host in virtual time: room for so many environments, so many tool calls at a time.

An environment takes its place, then its image has to be there (images come one after the other
over one link, and stay), then it starts, with a few others at a time at most. It is its program's
until the program ends. A tool call then waits for one of the host's tool slots.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from drawloom.runtime.scheduler.events import HostUp
from drawloom.runtime.sim.workload import Job

CLAIMS = ("submission", "admission", "first")


@dataclass(frozen=True, slots=True)
class Rooms:
    """What a host has. `starts`: environments that start at a time; `pull`: GB a second of images;
    `park`: seconds to put an environment aside (its changes are committed), None if it cannot;
    `restart`: until it is back.

    `claims` is when a pool that is no part of the scheduler takes an environment for a program: at
    its submission, its admission, or its first tool call. Its places go in the order of claims.
    """

    slots: int
    tools: int
    starts: int = 4
    pull: float = 0.25
    park: float | None = 2.0
    restart: float = 1.0
    claims: str = "first"


@dataclass(slots=True)
class HostCounters:
    """Seconds: of programs waiting for their environment, of tool calls waiting for a slot, of
    places taken, of tools running."""

    stall: float = 0.0
    queued: float = 0.0
    taken: float = 0.0
    ran: float = 0.0


@dataclass(slots=True)
class _Place:
    """A program's environment. `waits` is whose tool waits for it, and since when."""

    job: Job
    since: float = -1.0
    ready: bool = False
    gone: bool = False
    waits: Callable[[], None] | None = None
    asked: float = 0.0


class SimHost:
    """`claim` an environment, `when_ready`, `run` tools in it, `release` it. `at` is the
    simulation's agenda: a time, what to call then, and with what."""

    name = "host"

    def __init__(
        self, rooms: Rooms, at: Callable[[float, Callable[[Any], None], object], None]
    ) -> None:
        self.rooms, self._at = rooms, at
        self.counters = HostCounters()
        self.now = 0.0
        self._numbers = count()
        self._places: dict[str, _Place] = {}
        self._queue: list[_Place] = []
        self._used = self._starting = self._running = 0
        self._parked: set[str] = set()
        self._images: dict[str, float] = {}
        self._link = 0.0
        self._starts: list[_Place] = []
        self._tools: list[tuple[float, int, float, float, Callable[[], None]]] = []

    @property
    def up(self) -> HostUp:
        return HostUp(self.name, self.rooms.slots, self.rooms.park is not None)

    # --- environments ---------------------------------------------------------------------

    def claim(self, job: Job) -> None:
        """A place for the program's environment; nothing happens if it has one."""
        if job.id not in self._places:
            self._places[job.id] = place = _Place(job)
            self._queue.append(place)
            self._give()

    def when_ready(self, job: Job, then: Callable[[], None]) -> None:
        place = self._places[job.id]
        if place.ready:
            then()
        else:
            place.waits, place.asked = then, self.now

    def release(self, program: str) -> None:
        place = self._places.pop(program, None)
        self._parked.discard(program)
        if place is None:
            return
        place.gone = True
        if place.since < 0:
            self._queue.remove(place)
        elif place.ready:
            self._free(place)

    def park(self, program: str) -> None:
        """Put a program's environment aside; its next claim starts it as it was."""
        assert self.rooms.park is not None
        if not self._places[program].ready:
            self.release(program)  # nothing ran in it yet
            return
        self._parked.add(program)
        self._at(self.now + self.rooms.park, self._free, self._places.pop(program))

    def _give(self) -> None:
        while self._queue and self._used < self.rooms.slots:
            place = self._queue.pop(0)
            place.since = self.now
            self._used += 1
            self._at(self._pulled(place.job), self._start, place)

    def _pulled(self, job: Job) -> float:
        """When the image is there."""
        if job.env not in self._images:
            self._link = max(self.now, self._link) + job.image_gb / self.rooms.pull
            self._images[job.env] = self._link
        return max(self.now, self._images[job.env])

    def _start(self, place: _Place) -> None:
        self._starts.append(place)
        self._begin()

    def _begin(self) -> None:
        while self._starts and self._starting < self.rooms.starts:
            self._starting += 1
            place = self._starts.pop(0)
            job = place.job
            seconds = self.rooms.restart if job.id in self._parked else job.env_start
            self._at(self.now + seconds, self._started, place)

    def _started(self, place: _Place) -> None:
        self._starting -= 1
        self._begin()
        place.ready = True
        if place.gone:
            self._free(place)
        elif place.waits is not None:
            self.counters.stall += self.now - place.asked
            place.waits()

    def _free(self, place: _Place) -> None:
        self.counters.taken += self.now - place.since
        self._used -= 1
        self._give()

    # --- tools ----------------------------------------------------------------------------

    def run(self, seconds: float, priority: float, then: Callable[[], None]) -> None:
        """A tool call for so long, once a slot is free; the lowest priority first."""
        item = (priority, next(self._numbers), seconds, self.now, then)
        heapq.heappush(self._tools, item)
        self._work()

    def _work(self) -> None:
        while self._tools and self._running < self.rooms.tools:
            _, _, seconds, asked, then = heapq.heappop(self._tools)
            self._running += 1
            self.counters.queued += self.now - asked
            self.counters.ran += seconds
            self._at(self.now + seconds, self._ran, then)

    def _ran(self, then: Callable[[], None]) -> None:
        self._running -= 1
        self._work()
        then()


__all__ = ["CLAIMS", "HostCounters", "Rooms", "SimHost"]
