"""Simulation of a workload under a policy, in virtual time.

The scheduler and the engine's cache are those that run live; only the seconds are computed instead
of spent.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from drawloom.errors import EngineError
from drawloom.runtime.scheduler import Policy, Scheduler
from drawloom.runtime.scheduler.actions import (
    RefuseStep,
    ScheduleTick,
    StartStep,
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
)
from drawloom.runtime.scheduler.handlers import handler_table, handles
from drawloom.runtime.scheduler.multi_engine import MultiEngineScheduler
from drawloom.runtime.scheduler.policies.request_cap import RequestLevel
from drawloom.runtime.sim.env_actions import EnvActions
from drawloom.runtime.sim.knowledge import Knowledge
from drawloom.runtime.sim.kv_actions import KVActions
from drawloom.runtime.sim.presets import Machine
from drawloom.runtime.sim.sim_calls import Work, sequence
from drawloom.runtime.sim.sim_engines import SimEngines
from drawloom.runtime.sim.sim_host import SandboxSpec, SimHost
from drawloom.runtime.sim.sim_program import Ended, Outcome, Prompts, SimProgram, conversation_of
from drawloom.runtime.sim.workload import Job


@dataclass(slots=True)
class _Step:
    """Keep a call on its way.

    Attributes:
        program: whose call it is.
        at: its number in the program.
        work: its progress at the engine.
        tail: numbers of its prompt that were in the context that it goes on from.
    """

    program: SimProgram
    at: int
    work: Work
    tail: int


class Simulation:
    """Run one workload under one policy.

    Args:
        machine: each engine's costs and sizes.
        policy: decides.
        jobs: programs with their arrivals.
        host: there is host memory behind the engines.
        record: keep the calls that ended in `log`.
        knows: what the scheduler knows of agents: ``declared`` (their graphs say how many calls are
            to come), ``learned`` (their names and call sites, from which it learns), ``http`` (what
            the server sees of a client: conversations, where they fork, the tools that answered) or
            ``blind`` (requests, each in some conversation of a program).
        sandbox: a sandbox host; None if tools need no environment.
        replicas: number of engines.
        routing: how programs find theirs (`MultiEngineScheduler`).
        calibrated: the scheduler knows the machine's costs from the start, as after `drawloom
            profile`; else it learns them.

    Attributes:
        log: with `record`, every call that ended, its program and its number there; `Work.ends` is
            then the time at which it ended.
    """

    def __init__(
        self,
        machine: Machine,
        policy: Policy,
        jobs: list[Job],
        host: bool,
        record: bool = False,
        knows: str = "learned",
        sandbox: SandboxSpec | None = None,
        replicas: int = 1,
        routing: str = "affine",
        calibrated: bool = False,
    ) -> None:
        self.machine, self.jobs, self._unit = machine, jobs, machine.unit
        self._knows, self._calibrated = Knowledge(knows), calibrated
        self.log: list[tuple[Work, Job, int]] | None = [] if record else None
        self.scheduler = (
            MultiEngineScheduler(policy, routing) if replicas > 1 else Scheduler(policy)
        )
        cap = policy.sequences if isinstance(policy, RequestLevel) else 0
        machine = replace(machine, max_sequences=cap or machine.max_sequences)
        self.engines = SimEngines(machine, host, host and policy.spill, replicas)
        self._home = next(iter(self.engines.all))
        self._memory = machine.host_tokens if host else 0
        self.now, self.events = 0.0, 0
        self.host = None if sandbox is None else SimHost(sandbox, self._at)
        self._agenda: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = count()
        self._prompts = Prompts(machine.unit)
        self._running: dict[str, SimProgram] = {}
        self._steps: dict[str, _Step] = {}
        self._recomputed = self._fresh = 0
        self._done: list[Ended] = []
        self._inbox: list[Event] = []
        self._kv = KVActions(self.engines, self._at)
        self._envs = EnvActions(self.host, self._running, self._tell, self._returned)
        self._handlers = handler_table(self, self._kv, self._envs)

    def run(self) -> Outcome:
        """Run until every program has ended.

        Raises:
            EngineError: a program never can end.
        """
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
            policy=self.scheduler.policy.name,
            ended=self._done,
            counters=self.engines.counters,
            recomputed=self._recomputed,
            fresh=self._fresh,
            seconds=self.now,
            events=self.events,
            host=None if self.host is None else self.host.counters,
            moves=moves,
            moved=self.engines.moved,
            engines=len(self.engines.all),
        )

    @property
    def cores(self) -> list[Scheduler]:
        """Return the scheduler of each engine."""
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
        """Tell the scheduler what engines did, and let them do what follows at the same moment."""
        while reports := self.engines.settle():
            for one in reports:
                decoded = ((self._steps[s].program.job.id, s, there) for s, there in one.decoded)
                if calls := tuple(decoded):
                    self._tell(Decoded(one.engine, calls))
                for work in one.preempted:
                    program = self._steps[work.step].program.job.id
                    self._tell(Preempted(program, work.step, one.engine))
            for one in reports:
                for work in one.ended:
                    self._finished(work)

    def _tell(self, event: Event) -> None:
        self._inbox.append(event)
        if len(self._inbox) > 1:
            return
        while self._inbox:
            self.events += 1
            for action in self.scheduler.handle(self._inbox[0], self.now):
                self._handlers[type(action)](action)
            self._inbox.pop(0)

    # --- programs -------------------------------------------------------------------------

    def _arrive(self, job: Job) -> None:
        program = self._running[job.id] = SimProgram(job, self.now)
        expect = job.expect if self._knows.declared else None
        envs = (job.env,) if self.host is not None and job.env else ()
        agent = self._knows.agent(job)
        self._tell(ProgramSubmitted(job.id, agent, job.tenant, envs=envs, expect_steps=expect))
        self._envs.reach("submission", job.id)
        for at in program.first:
            self._ready((job.id, at))

    def _ready(self, which: tuple[str, int]) -> None:
        """Send a call that has its input."""
        name, at = which
        program = self._running[name]
        job, call = program.job, program.job.calls[at]
        conversation = conversation_of(name, call.chat)
        if call.chat not in program.chats:
            self._fork(program, job.base(at))
        units, tail = self._prompts.of(program, at)
        self._fresh += self._unit * (len(units) - tail) + call.output
        step = f"{name}#{at}"
        answer = self._prompts.new(call.output)
        seq, prompt = sequence(step, conversation, units), len(units) * self._unit
        work = Work(
            step=step,
            seq=seq,
            prompt=prompt,
            output=call.output,
            priority=0.0,
            ready=self.now,
            answer=answer,
        )
        self._steps[step] = _Step(program, at, work, tail)
        state = self._knows.state(job, at)
        most = max(call.output, job.max_tokens)
        self._tell(
            StepReady(
                program=name,
                conversation=conversation,
                step=step,
                state=state,
                engine=self._home,
                prompt=prompt,
                output=most,
            )
        )

    def _fork(self, program: SimProgram, base: int) -> None:
        """Begin all conversations that go on from a call, before any of them makes a call.

        A blind scheduler does not see where they come from.
        """
        job = program.job
        for at, call in enumerate(job.calls):
            if job.base(at) == base and call.chat not in program.chats:
                program.chats.add(call.chat)
                if base >= 0 and self._knows.forks:
                    parent, child = (
                        conversation_of(job.id, c.chat) for c in (job.calls[base], call)
                    )
                    self._tell(Forked(job.id, parent, child, self._home))

    def _finished(self, work: Work) -> None:
        step = self._steps.pop(work.step)
        program, at = step.program, step.at
        result, job = program.result, program.job
        work.ends = self.now
        if self.log is not None:
            self.log.append((work, job, at))
        wait = work.first - work.ready
        if program.ended:
            result.waits.append(wait)
        else:
            result.admission = wait
        self._recomputed += max(0, step.tail * self._unit - work.cached) + work.repeated
        program.finished(at, work.seq.tokens)
        self._report(program, at, work)
        call = job.calls[at]
        if program.done:
            result.ended = self.now
            self._done.append(result)
            del self._running[job.id]
            self._tell(ProgramEnded(job.id))
            return
        if not program.calls_of[call.chat] and call.chat:
            self._tell(ConversationEnded(job.id, conversation_of(job.id, call.chat)))
        if self._knows.declared and call.left is not None:
            self._tell(Expected(job.id, call.left))
        self._envs.use(program, at)

    def _returned(self, program: SimProgram, at: int, rest: float) -> None:
        """Go on after a call's tool has ended; what follows is ready `rest` seconds later."""
        for other, ready in program.returned(at, self.now + rest):
            when = ready + self.machine.cost.call
            self._at(when, self._ready, (program.job.id, other))

    def _report(self, program: SimProgram, at: int, work: Work) -> None:
        job = program.job
        call, last = job.calls[at], program.done
        over = not program.calls_of[call.chat]
        self._tell(
            StepFinished(
                program=job.id,
                conversation=conversation_of(job.id, call.chat),
                step=work.step,
                state=self._knows.state(job, at),
                engine=self._home,
                context=len(work.seq.tokens) * self._unit,
                calls=() if last or over else (call.tool,),
                computed=work.prompt - work.cached,
                seconds=work.first - work.begun,
                queued=work.begun - work.ready,
                service=self.now - work.begun,
                final=last,
            )
        )

    # --- actions --------------------------------------------------------------------------

    @handles(StartStep)
    def _start(self, action: StartStep) -> None:
        work = self._steps[action.step].work
        work.priority = action.priority
        there = self._kv.arrival(work.seq.conversation)
        if there > self.now:
            self._at(there, self._submit, (action.engine, work))
        else:
            self._submit((action.engine, work))

    def _submit(self, what: tuple[str, Work]) -> None:
        engine, work = what
        self.engines.at(engine).submit(work)

    @handles(ScheduleTick)
    def _schedule_tick(self, action: ScheduleTick) -> None:
        self._at(action.at, self._tell, Tick())

    @handles(RefuseStep)
    def _refuse(self, action: RefuseStep) -> None:
        raise EngineError(
            f"program {action.program} has a prompt of {action.prompt:,} tokens; the machine holds "
            f"{action.room:,}"
        )


__all__ = ["Simulation"]
