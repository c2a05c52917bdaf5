"""Programs of a workload under a policy, in virtual time: the scheduler's core and the engine's
cache are the ones that run live; only the seconds are computed instead of spent."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from drawloom.errors import EngineError
from drawloom.runtime.scheduler import Policy, Scheduler
from drawloom.runtime.scheduler.actions import (
    Action,
    Admit,
    ClaimEnv,
    DemoteKV,
    LeaseKV,
    MoveKV,
    ParkEnvs,
    PrefetchKV,
    RefuseStep,
    ReleaseEnvs,
    ReleaseKV,
    ScheduleTick,
    StartStep,
    StartTool,
    WarmEnv,
)
from drawloom.runtime.scheduler.events import (
    ConversationEnded,
    Decoded,
    EngineUp,
    Event,
    Expected,
    Forked,
    Preempted,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
    Tick,
    ToolReady,
)
from drawloom.runtime.scheduler.multi_engine import MultiEngineScheduler
from drawloom.runtime.scheduler.policies.request_cap import RequestLevel
from drawloom.runtime.sim.presets import Machine
from drawloom.runtime.sim.sim_calls import Work, sequence
from drawloom.runtime.sim.sim_engines import Engines
from drawloom.runtime.sim.sim_host import Rooms, SimHost
from drawloom.runtime.sim.sim_program import Ended, Outcome, Prompts, Running, conversation_of
from drawloom.runtime.sim.workload import Job


@dataclass(slots=True)
class _Step:
    """A call on its way. `tail` numbers of its prompt were in the context that it goes on from."""

    running: Running
    at: int
    work: Work
    tail: int


class Simulation:
    """One workload under one policy. With `record`, `log` has every call that ended, the program
    it was of and its number there; `Work.ends` is then when it ended.

    What the scheduler `knows` of agents: ``declared`` (their graphs say how many calls are to
    come), ``learned`` (their names and places, from which it learns), ``http`` (what the server
    sees of a client: conversations, where they fork, the tools that answered) or ``blind``
    (requests, each in some conversation of a program).
    What computing costs it learns, unless it is `calibrated`, as after `drawloom profile`.
    With `replicas` engines, `routing` is how programs find theirs (`MultiEngineScheduler`).
    """

    def __init__(
        self,
        machine: Machine,
        policy: Policy,
        jobs: list[Job],
        host: bool,
        record: bool = False,
        knows: str = "learned",
        rooms: Rooms | None = None,
        replicas: int = 1,
        routing: str = "affine",
        calibrated: bool = False,
    ) -> None:
        self.machine, self.jobs, self._unit = machine, jobs, machine.unit
        self.knows, self._calibrated = knows, calibrated
        self.log: list[tuple[Work, Job, int]] | None = [] if record else None
        self.scheduler = (
            MultiEngineScheduler(policy, routing) if replicas > 1 else Scheduler(policy)
        )
        cap = policy.sequences if isinstance(policy, RequestLevel) else 0
        machine = replace(machine, max_sequences=cap or machine.max_sequences)
        self.engines = Engines(machine, host, host and policy.spill, replicas)
        self._home = next(iter(self.engines.all))
        self._memory = machine.host_tokens if host else 0
        self.now, self.events = 0.0, 0
        self.host = None if rooms is None else SimHost(rooms, self._at)
        self._tools: dict[str, tuple[Running, int]] = {}
        self._agenda: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = count()
        self._prompts = Prompts(machine.unit)
        self._running: dict[str, Running] = {}
        self._steps: dict[str, _Step] = {}
        self._recomputed = self._fresh = 0
        self._done: list[Ended] = []
        self._inbox: list[Event] = []
        self._coming: dict[str, tuple[str, float]] = {}
        self._does: dict[type[Any], Callable[[Any], object]] = {
            Admit: self._admit,
            StartStep: self._start,
            RefuseStep: self._refuse,
            LeaseKV: self._lease,
            ReleaseKV: self._release,
            DemoteKV: self._demote,
            PrefetchKV: self._prefetch,
            MoveKV: self._move,
            ScheduleTick: lambda a: self._at(a.at, self._tell, Tick()),
            WarmEnv: lambda a: None,
            ClaimEnv: lambda a: self._claim(a.program),
            StartTool: self._start_tool,
            ParkEnvs: self._park,
            ReleaseEnvs: self._give_back,
        }

    def run(self) -> Outcome:
        """Until every program has ended. Raises `EngineError` if one never can."""
        room = self.machine.kv_tokens
        for name in self.engines.all:
            self._tell(EngineUp(name, room, self._memory, room))
        for core in self.cores if self._calibrated else ():
            core.state.cost = self.machine.cost
        if self.host is not None:
            self._tell(self.host.up)
        for job in self.jobs:
            self._at(job.arrival, self._arrive, job)
        while len(self._done) < len(self.jobs):
            soon = self.engines.next_event()
            if self._agenda and (soon is None or self._agenda[0][0] <= soon):
                when, _, do, what = heapq.heappop(self._agenda)
                self._pass(when)
                do(what)
            elif soon is not None:
                self._pass(soon)
                self.engines.due()
            else:
                raise EngineError(self._stuck())
            self._settle()
        moves = self.scheduler.moves if isinstance(self.scheduler, MultiEngineScheduler) else 0
        return Outcome(
            self.scheduler.policy.name, self._done, self.engines.counters, self._recomputed,
            self._fresh, self.now, self.events,
            None if self.host is None else self.host.counters, moves, self.engines.moved,
            len(self.engines.all),
        )  # fmt: skip

    @property
    def cores(self) -> list[Scheduler]:
        """Of each engine."""
        one = self.scheduler
        return list(one.engines.values()) if isinstance(one, MultiEngineScheduler) else [one]

    def _stuck(self) -> str:
        held = sum(len(core.state.wait_queue.programs) for core in self.cores)
        return (
            f"after {self.now:,.0f} s nothing can happen any more: {len(self._done)} programs of "
            f"{len(self.jobs)} are done, {held} are held, {self.engines.waiting} calls wait"
        )

    # --- time -----------------------------------------------------------------------------

    def _at(self, when: float, do: Callable[[Any], None], what: object) -> None:
        heapq.heappush(self._agenda, (max(when, self.now), next(self._numbers), do, what))

    def _pass(self, when: float) -> None:
        self.now = self.engines.now = max(self.now, when)
        if self.host is not None:
            self.host.now = self.now

    def _settle(self) -> None:
        """What engines did, and what that sets off, at this same moment."""
        while news := self.engines.settle():
            for one in news:
                told = ((self._steps[s].running.job.id, s, there) for s, there in one.decoded)
                if calls := tuple(told):
                    self._tell(Decoded(one.engine, calls))
                for work in one.preempted:
                    program = self._steps[work.step].running.job.id
                    self._tell(Preempted(program, work.step, one.engine))
            for one in news:
                for work in one.ended:
                    self._finished(work)

    def _tell(self, event: Event) -> None:
        self._inbox.append(event)
        if len(self._inbox) > 1:
            return
        while self._inbox:
            self.events += 1
            for action in self.scheduler.handle(self._inbox[0], self.now):
                self._do(action)
            self._inbox.pop(0)

    def _do(self, action: Action) -> None:
        self._does[type(action)](action)

    # --- programs -------------------------------------------------------------------------

    def _arrive(self, job: Job) -> None:
        running = self._running[job.id] = Running(job, self.now)
        expect = job.expect if self.knows == "declared" else None
        envs = (job.env,) if self.host is not None and job.env else ()
        agent = self._agent(job)
        self._tell(ProgramSubmitted(job.id, agent, job.tenant, envs=envs, expect_steps=expect))
        if self.host is not None and self.host.rooms.claims == "submission":
            self._claim(job.id)
        for at in running.first:
            self._ready((job.id, at))

    def _agent(self, job: Job) -> str:
        return "client" if self.knows in ("http", "blind") else job.agent

    def _state(self, job: Job, at: int) -> str:
        """Where an agent is: its place, and what came before. A blind scheduler sees a request."""
        if self.knows == "blind":
            return "llm/"
        before, site = job.base(at), "http" if self.knows == "http" else job.calls[at].site
        return f"{site}/{job.calls[before].tool if before >= 0 else ''}"

    def _ready(self, which: tuple[str, int]) -> None:
        """A program's call has its input."""
        name, at = which
        running = self._running[name]
        job, call = running.job, running.job.calls[at]
        conversation = conversation_of(name, call.chat)
        if call.chat not in running.chats:
            self._fork(running, job.base(at))
        units, tail = self._prompts.of(running, at)
        self._fresh += self._unit * (len(units) - tail) + call.output
        step = f"{name}#{at}"
        answer = self._prompts.new(call.output)
        seq, prompt = sequence(step, conversation, units), len(units) * self._unit
        work = Work(step, seq, prompt, call.output, 0.0, self.now, answer)
        self._steps[step] = _Step(running, at, work, tail)
        state = self._state(job, at)
        most = max(call.output, job.max_tokens)
        self._tell(StepReady(name, conversation, step, state, self._home, prompt, most))

    def _fork(self, running: Running, base: int) -> None:
        """All conversations that go on from a call begin; they are there before any of them speaks.
        Whoever sees requests only, does not see where they come from."""
        job = running.job
        for at, call in enumerate(job.calls):
            if job.base(at) == base and call.chat not in running.chats:
                running.chats.add(call.chat)
                if base >= 0 and self.knows != "blind":
                    parent, child = (
                        conversation_of(job.id, c.chat) for c in (job.calls[base], call)
                    )
                    self._tell(Forked(job.id, parent, child, self._home))

    def _finished(self, work: Work) -> None:
        step = self._steps.pop(work.step)
        running, at = step.running, step.at
        result, job = running.result, running.job
        work.ends = self.now
        if self.log is not None:
            self.log.append((work, job, at))
        wait = work.first - work.ready
        if running.ended:
            result.waits.append(wait)
        else:
            result.admission = wait
        self._recomputed += max(0, step.tail * self._unit - work.cached) + work.repeated
        running.finished(at, work.seq.tokens)
        self._report(running, at, work)
        call = job.calls[at]
        if running.done:
            result.ended = self.now
            self._done.append(result)
            del self._running[job.id]
            self._tell(ProgramEnded(job.id))
            return
        if not running.calls_of[call.chat] and call.chat:
            self._tell(ConversationEnded(job.id, conversation_of(job.id, call.chat)))
        if self.knows == "declared" and call.left is not None:
            self._tell(Expected(job.id, call.left))
        if self.host is not None and job.env and call.busy:
            self._use(running, at)
        else:
            self._returned(running, at, call.gap)

    def _returned(self, running: Running, at: int, rest: float) -> None:
        """A call's tool has ended, if it had one; `rest` seconds later what follows can go on."""
        for other, ready in running.returned(at, self.now + rest):
            when = ready + self.machine.cost.call
            self._at(when, self._ready, (running.job.id, other))

    def _use(self, running: Running, at: int) -> None:
        """A call's tool, in the program's environment."""
        assert self.host is not None
        job, call = running.job, running.job.calls[at]
        conversation, name = conversation_of(job.id, call.chat), f"{job.id}#{at}"
        self._tools[name] = (running, at)
        event = ToolReady(job.id, conversation, name, call.tool, self.host.name)
        self.host.claim(job)
        self.host.when_ready(job, lambda: self._tell(event))

    def _report(self, running: Running, at: int, work: Work) -> None:
        job = running.job
        call, last = job.calls[at], running.done
        over = not running.calls_of[call.chat]
        calls = () if last or over else (call.tool,)
        computed, seconds = work.prompt - work.cached, work.first - work.begun
        context = len(work.seq.tokens) * self._unit
        queued, service = work.begun - work.ready, self.now - work.begun
        self._tell(
            StepFinished(
                job.id, conversation_of(job.id, call.chat), work.step, self._state(job, at),
                self._home, context, calls, computed, seconds, queued, service, last,
            )
        )  # fmt: skip

    # --- actions --------------------------------------------------------------------------

    def _start(self, action: StartStep) -> None:
        work = self._steps[action.step].work
        work.priority = action.priority
        _, there = self._coming.get(work.seq.conversation, ("", self.now))  # its KV is on its way
        if there > self.now:
            self._at(there, self._submit, (action.engine, work))
        else:
            self._submit((action.engine, work))

    def _submit(self, what: tuple[str, Work]) -> None:
        engine, work = what
        self.engines.at(engine).submit(work)

    def _admit(self, action: Admit) -> None:
        if self.host is not None and self.host.rooms.claims == "admission":
            self._claim(action.program)

    def _claim(self, program: str) -> None:
        job = self._running[program].result.job
        if self.host is not None and job.env:
            self.host.claim(job)

    def _park(self, action: ParkEnvs) -> None:
        assert self.host is not None
        self.host.park(action.program)

    def _give_back(self, action: ReleaseEnvs) -> None:
        if self.host is not None:
            self.host.release(action.program)

    def _start_tool(self, action: StartTool) -> None:
        assert self.host is not None
        running, at = self._tools.pop(action.call)
        call = running.job.calls[at]

        def then() -> None:
            self._returned(running, at, call.gap - call.busy)

        self.host.run(call.busy, action.priority, then)

    def _refuse(self, action: RefuseStep) -> None:
        raise EngineError(
            f"program {action.program} has a prompt of {action.prompt:,} tokens; the machine holds "
            f"{action.room:,}"
        )

    def _lease(self, action: LeaseKV) -> None:
        cache = self.engines.at(action.engine).cache
        cache.lease(action.conversation, self.now, action.ttl, action.value)

    def _release(self, action: ReleaseKV) -> None:
        cache = self.engines.at(action.engine).cache
        cache.release(action.conversation, evict=action.evict)
        if self._coming.get(action.conversation, ("", 0.0))[0] == action.engine:
            del self._coming[action.conversation]

    def _demote(self, action: DemoteKV) -> None:
        self.engines.at(action.engine).cache.demote(action.conversation)

    def _prefetch(self, action: PrefetchKV) -> None:
        self.engines.at(action.engine).cache.prefetch(action.conversation)

    def _move(self, action: MoveKV) -> None:
        units, there = self.engines.move(action.engine, action.conversation)
        self._coming[action.conversation] = (action.target, there)
        self._at(there, self._moved, (action, units, there))

    def _moved(self, what: tuple[MoveKV, list[int], float]) -> None:
        action, units, there = what
        if self._coming.get(action.conversation) == (action.target, there):  # it has not ended
            del self._coming[action.conversation]
            self.engines.arrive(action.target, action.conversation, units)


__all__ = ["Simulation"]
