"""Programs of a workload under a policy, in virtual time: the scheduler's core and the engine's
cache are the ones that run live; only the seconds are computed instead of spent."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from drawloom.actions import (
    Action,
    Admit,
    ClaimEnv,
    DemoteKV,
    LeaseKV,
    PrefetchKV,
    ReleaseEnvs,
    ReleaseKV,
    StartStep,
    Wake,
    WarmEnv,
)
from drawloom.errors import EngineError
from drawloom.events import (
    EngineUp,
    Event,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
    Tick,
)
from drawloom.runtime.scheduler import Policy, Scheduler
from drawloom.runtime.sim.engine import UNIT, Counters, SimEngine, Work, sequence
from drawloom.runtime.sim.presets import Machine
from drawloom.runtime.sim.workload import Job

ENGINE = "sim"


@dataclass(slots=True)
class Ended:
    """What became of a program; seconds. `waits` are from ready to the first token of its later
    calls, `admission` of its first."""

    job: Job
    began: float
    ended: float = 0.0
    admission: float = 0.0
    waits: list[float] = field(default_factory=list)

    @property
    def jct(self) -> float:
        return self.ended - self.job.arrival


@dataclass(slots=True)
class Outcome:
    """One run. `recomputed` prompt tokens had been in a cache before, `fresh` tokens had not."""

    policy: str
    ended: list[Ended]
    counters: Counters
    recomputed: int
    fresh: int
    seconds: float
    events: int


@dataclass(slots=True)
class _Running:
    """A job on its way: the numbers of its context, and which call comes next."""

    result: Ended
    at: int = 0
    units: list[int] = field(default_factory=list)
    tail: int = 0
    work: Work | None = None


class Simulation:
    """One workload under one policy. With `record`, `log` has every call that ended, the program
    it was of and its number there; `Work.ends` is then when it ended."""

    def __init__(
        self, machine: Machine, policy: Policy, jobs: list[Job], host: bool, record: bool = False
    ) -> None:
        self.machine, self.jobs = machine, jobs
        self.log: list[tuple[Work, Job, int]] | None = [] if record else None
        self.scheduler = Scheduler(policy)
        self.scheduler.world.cost = machine.cost
        self.engine = SimEngine(machine, host, host and policy.spill)
        self.now, self.events = 0.0, 0
        self._agenda: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = count()
        self._fresh_units = count(1)
        self._prefixes: dict[str, list[int]] = {}
        self._running: dict[str, _Running] = {}
        self._steps: dict[str, tuple[_Running, Work]] = {}
        self._recomputed = self._fresh = 0
        self._done: list[Ended] = []
        self._inbox: list[Event] = []
        self._does: dict[type[Any], Callable[[Any], object]] = {
            Admit: lambda a: None,
            StartStep: self._start,
            LeaseKV: self._lease,
            ReleaseKV: self._release,
            DemoteKV: self._demote,
            PrefetchKV: self._prefetch,
            Wake: lambda a: self._at(a.at, self._tell, Tick()),
            WarmEnv: lambda a: None,
            ClaimEnv: lambda a: None,
            ReleaseEnvs: lambda a: None,
        }

    def run(self) -> Outcome:
        """Until every program has ended. Raises `EngineError` if one never can."""
        self._tell(EngineUp(ENGINE, self.machine.kv_tokens, self._host_tokens()))
        for job in self.jobs:
            self._at(job.arrival, self._arrive, job)
        while len(self._done) < len(self.jobs):
            soon = self.engine.next_event()
            if self._agenda and (soon is None or self._agenda[0][0] <= soon):
                when, _, do, what = heapq.heappop(self._agenda)
                self._pass(when)
                do(what)
            elif soon is not None:
                self._pass(soon)
            else:
                raise EngineError(self._stuck())
            self._settle()
        counters = self.engine.counters
        return Outcome(
            self.scheduler.policy.name, self._done, counters, self._recomputed, self._fresh,
            self.now, self.events,
        )  # fmt: skip

    def _host_tokens(self) -> int:
        return self.machine.host_tokens if self.engine.host else 0

    def _stuck(self) -> str:
        held = len(self.scheduler.world.programs) - len(self.scheduler.world.active)
        return (
            f"after {self.now:,.0f} s nothing can happen any more: {len(self._done)} programs of "
            f"{len(self.jobs)} are done, {held} are held, {self.engine.waiting} calls wait"
        )

    # --- time -----------------------------------------------------------------------------

    def _at(self, when: float, do: Callable[[Any], None], what: object) -> None:
        heapq.heappush(self._agenda, (max(when, self.now), next(self._numbers), do, what))

    def _pass(self, when: float) -> None:
        self.now = max(self.now, when)
        self.scheduler_now()
        self.engine.advance(self.now)

    def scheduler_now(self) -> None:
        self.engine.cache.lineages.expire(self.now)

    def _settle(self) -> None:
        """What the engine finished, and what that sets off, at this same moment."""
        while self.engine.finished:
            for work in self.engine.finished[:]:
                self.engine.finished.remove(work)
                self._finished(work)
            self.engine.advance(self.now)

    def _tell(self, event: Event) -> None:
        self._inbox.append(event)
        if len(self._inbox) > 1:
            return
        while self._inbox:
            self.events += 1
            for action in self.scheduler.handle(self._inbox[0], self.now):
                self._do(action)
            self._inbox.pop(0)
        self.engine.transfer()
        self.engine.advance(self.now)

    def _do(self, action: Action) -> None:
        self._does[type(action)](action)

    # --- programs -------------------------------------------------------------------------

    def _arrive(self, job: Job) -> None:
        self._running[job.id] = _Running(Ended(job, self.now))
        self._tell(ProgramSubmitted(job.id, job.agent, job.tenant))
        self._ready(job.id)

    def _ready(self, name: str) -> None:
        """A program's next call has its input."""
        running = self._running[name]
        job, call = running.result.job, running.result.job.calls[running.at]
        units = self._context(running)
        step = f"{name}#{running.at}"
        prompt = len(units) * UNIT
        seq = sequence(step, name, units + self._new(call.output))
        work = Work(step, seq, prompt, call.output, 0.0, self.now)
        running.units, running.work = seq.tokens, work
        self._steps[step] = running, work
        site = job.calls[running.at - 1].tool if running.at else ""
        self._tell(StepReady(name, name, step, f"llm/{site}", ENGINE, prompt, call.output))

    def _context(self, running: _Running) -> list[int]:
        """The numbers of the next prompt: what it shares with the last context, and new ones."""
        job, call = running.result.job, running.result.job.calls[running.at]
        begin = running.units[: call.reuse // UNIT] if running.at else self._prefix(job)
        total = max(1, round(call.prompt / UNIT))
        new = self._new(UNIT * max(0, total - len(begin)))
        self._fresh += UNIT * (len(new) if running.at else total) + call.output
        running.tail = len(begin)
        return begin[:total] + new

    def _prefix(self, job: Job) -> list[int]:
        size = job.shared // UNIT
        known = self._prefixes.setdefault(job.prefix, [])
        known += [next(self._fresh_units) for _ in range(size - len(known))]
        return known[:size]

    def _new(self, tokens: int) -> list[int]:
        return [next(self._fresh_units) for _ in range(-(-tokens // UNIT))]

    def _finished(self, work: Work) -> None:
        running, _ = self._steps.pop(work.step)
        result, job = running.result, running.result.job
        work.ends = self.now
        if self.log is not None:
            self.log.append((work, job, running.at))
        wait = work.first - work.ready
        if running.at:
            result.waits.append(wait)
            self._recomputed += max(0, running.tail * UNIT - work.cached)
        else:
            result.admission = wait
        call = job.calls[running.at]
        last = running.at + 1 == len(job.calls)
        calls = () if last else (call.tool,)
        computed, seconds = work.prompt - work.cached, work.first - work.begun
        site = job.calls[running.at - 1].tool if running.at else ""
        self._tell(
            StepFinished(
                job.id, job.id, work.step, f"llm/{site}", ENGINE, len(running.units) * UNIT, calls,
                computed, seconds, work.begun - work.ready, self.now - work.begun, last,
            )
        )  # fmt: skip
        if last:
            result.ended = self.now
            self._done.append(result)
            del self._running[job.id]
            self._tell(ProgramEnded(job.id))
        else:
            running.at += 1
            self._at(self.now + call.gap, self._ready, job.id)

    # --- actions --------------------------------------------------------------------------

    def _start(self, action: StartStep) -> None:
        _, work = self._steps[action.step]
        work.priority = action.priority
        self.engine.submit(work)

    def _lease(self, action: LeaseKV) -> None:
        self.engine.cache.lineages.lease(action.lineage, self.now, action.ttl, action.value)

    def _release(self, action: ReleaseKV) -> None:
        self.engine.cache.lineages.release(action.lineage, evict=action.evict)

    def _demote(self, action: DemoteKV) -> None:
        self.engine.cache.lineages.demote(action.lineage)

    def _prefetch(self, action: PrefetchKV) -> None:
        self.engine.cache.lineages.prefetch(action.lineage)


__all__ = ["Ended", "Outcome", "Simulation"]
