"""Simulated sandbox host: slots for environments, and a bounded number of tool calls at a time.

An environment takes its slot, then its image has to be there (images come one after the other over
one link, and stay), then it starts, with a few others at a time at most. It is its program's until
the program ends. A tool call then waits for one of the host's tool slots.
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
class SandboxSpec:
    """Describe a sandbox host.

    Attributes:
        slots: environments that fit on it.
        tools: tool calls that run at a time.
        starts: environments that start at a time.
        pull: GB a second of images.
        park: seconds to park an environment (its changes are committed); None if it cannot.
        restart: seconds until a parked one is back.
        claims: when a pool that is no part of the scheduler claims an environment for a program:
            at its submission, its admission, or its first tool call. Slots go in order of claims.
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
    """Count seconds of a sandbox host.

    Attributes:
        stall: of programs waiting for their environment.
        queued: of tool calls waiting for a tool slot.
        taken: of slots taken.
        ran: of tools running.
    """

    stall: float = 0.0
    queued: float = 0.0
    taken: float = 0.0
    ran: float = 0.0


@dataclass(slots=True)
class _SimEnv:
    """Keep a program's environment.

    Attributes:
        job: the program.
        since: when it got its slot; negative before.
        ready: it has started.
        gone: it was released before it had started.
        waits: called when it is ready, for the tool that waits for it.
        asked: since when that tool waits.
    """

    job: Job
    since: float = -1.0
    ready: bool = False
    gone: bool = False
    waits: Callable[[], None] | None = None
    asked: float = 0.0


class SimHost:
    """Run environments and tools in virtual time.

    `claim` an environment, wait with `when_ready`, `run` tools in it, `release` it.

    Args:
        spec: of the host.
        at: adds to the simulation's agenda: a time, what to call then, and with what.
    """

    name = "host"

    def __init__(
        self, spec: SandboxSpec, at: Callable[[float, Callable[[Any], None], object], None]
    ) -> None:
        self.spec, self._at = spec, at
        self.counters = HostCounters()
        self.now = 0.0
        self._numbers = count()
        self._envs: dict[str, _SimEnv] = {}
        self._queue: list[_SimEnv] = []
        self._used = self._starting = self._running = 0
        self._parked: set[str] = set()
        self._images: dict[str, float] = {}
        self._link = 0.0
        self._starts: list[_SimEnv] = []
        self._tools: list[tuple[float, int, float, float, Callable[[], None]]] = []

    @property
    def up(self) -> HostUp:
        """Return the event that announces the host."""
        return HostUp(self.name, self.spec.slots, self.spec.park is not None)

    # --- environments ---------------------------------------------------------------------

    def claim(self, job: Job) -> None:
        """Claim a slot for a program's environment, unless it has one."""
        if job.id not in self._envs:
            self._envs[job.id] = env = _SimEnv(job)
            self._queue.append(env)
            self._give()

    def when_ready(self, job: Job, then: Callable[[], None]) -> None:
        """Call a function when a program's environment is ready."""
        env = self._envs[job.id]
        if env.ready:
            then()
        else:
            env.waits, env.asked = then, self.now

    def release(self, program: str) -> None:
        """Release a program's environment."""
        env = self._envs.pop(program, None)
        self._parked.discard(program)
        if env is None:
            return
        env.gone = True
        if env.since < 0:
            self._queue.remove(env)
        elif env.ready:
            self._free(env)

    def park(self, program: str) -> None:
        """Park a program's environment; its next claim starts it as it was."""
        assert self.spec.park is not None
        if not self._envs[program].ready:
            self.release(program)  # nothing ran in it yet
            return
        self._parked.add(program)
        self._at(self.now + self.spec.park, self._free, self._envs.pop(program))

    def _give(self) -> None:
        while self._queue and self._used < self.spec.slots:
            env = self._queue.pop(0)
            env.since = self.now
            self._used += 1
            self._at(self._pulled(env.job), self._start, env)

    def _pulled(self, job: Job) -> float:
        """Return when a program's image is there."""
        if job.env not in self._images:
            self._link = max(self.now, self._link) + job.image_gb / self.spec.pull
            self._images[job.env] = self._link
        return max(self.now, self._images[job.env])

    def _start(self, env: _SimEnv) -> None:
        self._starts.append(env)
        self._begin()

    def _begin(self) -> None:
        while self._starts and self._starting < self.spec.starts:
            self._starting += 1
            env = self._starts.pop(0)
            job = env.job
            seconds = self.spec.restart if job.id in self._parked else job.env_start
            self._at(self.now + seconds, self._started, env)

    def _started(self, env: _SimEnv) -> None:
        self._starting -= 1
        self._begin()
        env.ready = True
        if env.gone:
            self._free(env)
        elif env.waits is not None:
            self.counters.stall += self.now - env.asked
            env.waits()

    def _free(self, env: _SimEnv) -> None:
        self.counters.taken += self.now - env.since
        self._used -= 1
        self._give()

    # --- tools ----------------------------------------------------------------------------

    def run(self, seconds: float, priority: float, then: Callable[[], None]) -> None:
        """Run a tool call once a tool slot is free; the lowest priority goes first.

        Args:
            seconds: that it takes.
            priority: lower goes first.
            then: called when it has ended.
        """
        item = (priority, next(self._numbers), seconds, self.now, then)
        heapq.heappush(self._tools, item)
        self._work()

    def _work(self) -> None:
        while self._tools and self._running < self.spec.tools:
            _, _, seconds, asked, then = heapq.heappop(self._tools)
            self._running += 1
            self.counters.queued += self.now - asked
            self.counters.ran += seconds
            self._at(self.now + seconds, self._ran, then)

    def _ran(self, then: Callable[[], None]) -> None:
        self._running -= 1
        self._work()
        then()


__all__ = ["CLAIMS", "HostCounters", "SandboxSpec", "SimHost"]
