"""The core: one event at a time, in; what to do about it, out.

Pure: the time is an argument, the same events give the same actions, and late, doubled or
unknown ones are harmless. It runs live in front of the engine, and in the simulator and in tests
under a virtual clock.
"""

import heapq
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from drawloom.actions import (
    Action,
    Admit,
    ClaimEnv,
    DemoteKV,
    LeaseKV,
    ParkEnvs,
    PrefetchKV,
    RefuseStep,
    ReleaseEnvs,
    ReleaseKV,
    StartStep,
    StartTool,
    Wake,
    WarmEnv,
)
from drawloom.events import (
    Decoded,
    EngineUp,
    Event,
    Expected,
    Forked,
    HostState,
    HostUp,
    LineageEnded,
    Preempted,
    ProgramEnded,
    ProgramSubmitted,
    StepFailed,
    StepFinished,
    StepReady,
    TenantShare,
    Tick,
    ToolFinished,
    ToolNamed,
    ToolReady,
    ToolStarted,
)
from drawloom.graph.execution import END, ExecutionGraph
from drawloom.runtime.scheduler.policy import Demote, Drop, Keep, Policy, Retention
from drawloom.runtime.scheduler.program import Lineage, Program
from drawloom.runtime.scheduler.world import World

_GROWTH = 1.1
_NOTICE = 1e-3  # of an engine's memory; by less nothing is decided otherwise


class Scheduler:
    """Keeps the world of one engine, asks the policy; `beside` is another engine's world."""

    def __init__(self, policy: Policy, beside: World | None = None) -> None:
        self.policy = policy
        self.world = World(beside)
        self.world.held.rank = lambda program: self.policy.rank(self.world, program)
        self.world.held.due_at = self._due
        self._promised: dict[str, int] = {}
        self._next_tick: float | None = None
        self._wakes: list[float] = []
        self._returns: list[tuple[float, str, str, float]] = []
        self._absences: list[tuple[float, str, float]] = []
        self._absence: float | None = None
        self._longest: dict[str, int] = {}
        self._handlers: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            ProgramSubmitted: self._submitted,
            Expected: self._expected,
            StepReady: self._step_ready,
            StepFinished: self._step_finished,
            StepFailed: self._step_failed,
            Decoded: self._decoded,
            Preempted: self._preempted,
            ToolNamed: self._tool_named,
            ToolReady: self._tool_ready,
            ToolStarted: self._tool_started,
            ToolFinished: lambda event, now: [],
            Forked: self._forked,
            LineageEnded: self._lineage_ended,
            ProgramEnded: self._program_ended,
            EngineUp: self._engine_up,
            HostUp: self._host_up,
            HostState: self._host_state,
            TenantShare: self._tenant_share,
            Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event at time `now` (seconds; never goes back)."""
        self.world.pass_time(now)
        return self._handlers[type(event)](event, now)

    # --- programs -------------------------------------------------------------------------

    def _submitted(self, event: ProgramSubmitted, now: float) -> list[Action]:
        if event.program in self.world.programs:
            return []
        program = Program(event, next(self.world.arrivals), now)
        program.say(event.expect_steps)
        self.world.submit(program)
        self._hold(program, now)
        return [*self.rebalance(now), *self._clock(now)]

    def _expected(self, event: Expected, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        if program is None:
            return []
        program.say(event.steps)
        self.world.reconsider(program, self.policy.order(self.world, program))
        return self.rebalance(now)

    def _program_ended(self, event: ProgramEnded, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        if program is None:
            return []
        if program.active:
            self.world.load.expect(-self.policy.adds(self.world, program))
        self.world.end(program)
        graph = self.world.graph(program.about.agent)
        if program.peak:
            span = now - program.admitted
            self.world.ended_after(now - program.submitted)
            graph.finished(
                program.peak, program.service, span, program.steps, program.trail, program.shown,
                program.outgrew,
            )  # fmt: skip
            graph.took(now - program.submitted)
            if program.expected is not None:
                graph.declared.observe(program.expected, program.steps)
            self._learned(graph)
        actions: list[Action] = []
        for lineage in program.lineages.values():
            graph.observe(lineage.state, END)
            actions.append(self._release(program, lineage, event.keep))
        return [*actions, ReleaseEnvs(program.id), *self.rebalance(now)]

    def _learned(self, graph: ExecutionGraph) -> None:
        """Each time that an agent's history has grown by a tenth, its active programs are promised
        what it says now."""
        if graph.programs >= self._promised.get(graph.agent, 0) * _GROWTH + 1:
            self._promised[graph.agent] = graph.programs
            for program in self.world.active.values():
                if program.about.agent == graph.agent:
                    self.world.reclaim(program, self.policy.claim(self.world, program))

    def rebalance(self, now: float) -> list[Action]:
        """Pauses, admissions and warm targets, after anything that may have changed them."""
        world, actions = self.world, list[Action]()
        for program in self.policy.pause(world, now):
            actions += self._pause(program, now)
        for program in self.policy.admit(world, now):
            actions += self._activate(program, now)
        return actions + (self._pools(now) if world.places.hosts else [])

    def _pools(self, now: float) -> list[Action]:
        """How many environments of each key are to be ready, where that has changed."""
        places, actions = self.world.places, list[Action]()
        for env in sorted(places.wanted.keys() | places.targets.keys()):
            before = places.targets.pop(env, 0)
            wanted = self.policy.warm(self.world, env, now)
            if wanted:
                places.targets[env] = wanted
            if wanted != before:
                actions.append(WarmEnv(self._host_of(env), env, wanted))
        return actions

    def _host_of(self, env: str) -> str:
        host = self.world.places.hosts.get(env)
        return host.host if host is not None else ""

    def _activate(self, program: Program, now: float) -> list[Action]:
        actions: list[Action] = [] if program.begun else [Admit(program.id)]
        program.trial = self.policy.look(self.world, program)
        program.claim = self.policy.claim(self.world, program)
        self.world.load.expect(self.policy.adds(self.world, program))
        self.world.activate(program, now)
        actions += self._expect_back(program, now)
        actions += self._furnish(program, now)
        ready, program.ready = program.ready, []
        return actions + [self._start(program, step, now) for step in ready]

    def _furnish(self, program: Program, now: float) -> list[Action]:
        """On a limited host there is room for its environments now: they are made meanwhile."""
        if program.host is None or not self.policy.claim_early:
            return []
        envs = [env for env in program.about.envs if env not in program.envs]
        for env in envs:
            self.world.places.took(program, env, now)
        return [ClaimEnv(program.host, program.id, env) for env in envs]

    def _due(self, program: Program) -> float:
        """When a program will have been held for too long, by what is known of its like."""
        return program.since + max(0.0, self.policy.due(self.world, program) - program.held)

    def _hold(self, program: Program, now: float) -> None:
        program.since = now
        program.due = self._due(program)
        self.world.hold(program, self.policy.order(self.world, program), now)

    def _pause(self, program: Program, now: float) -> list[Action]:
        program.trial = 0
        self.world.load.expect(-self.policy.adds(self.world, program))
        self._hold(program, now)
        actions: list[Action] = []
        for lineage in program.lineages.values():
            what = self.policy.paused(self.world, program, lineage, now)
            actions += self._keep(program, lineage, what, now)
        return actions

    # --- programs that change their engine ------------------------------------------------

    def withdraw(self, program: Program) -> None:
        """A program leaves, at a tool boundary; it goes on at another engine."""
        self.world.withdraw(program)

    def accept(self, program: Program, engine: str, now: float) -> list[Action]:
        """A program comes from another engine, its KV on its way if it has any."""
        program.ready = [replace(step, engine=engine) for step in program.ready]
        for lineage in program.lineages.values():
            lineage.engine = engine
        program.due = self._due(program)
        self.world.accept(program, self.policy.order(self.world, program))
        return [*self.rebalance(now), *self._clock(now)]

    # --- time -----------------------------------------------------------------------------

    def _clock(self, now: float) -> list[Action]:
        """Ask for the policy's next tick, if it has a clock and there is anything to do."""
        if self.policy.period is None or self._next_tick is not None or not self.world.programs:
            return []
        self._next_tick = now + self.policy.period
        return self._wake(self._next_tick)

    def _wake(self, at: float) -> list[Action]:
        heapq.heappush(self._wakes, at)
        return [Wake(at)]

    def _tick(self, event: Tick, now: float) -> list[Action]:
        while self._wakes and self._wakes[0] <= now:
            heapq.heappop(self._wakes)
        actions: list[Action] = []
        while self._returns and self._returns[0][0] <= now:
            _, name, conversation, since = heapq.heappop(self._returns)
            program = self.world.programs.get(name)
            lineage = program.lineages.get(conversation) if program else None
            waits = lineage is not None and lineage.waiting is not None and lineage.since == since
            if lineage is not None and waits:  # and has not been back meanwhile
                actions.append(PrefetchKV(lineage.engine, name, conversation))
        if self._absence is not None and self._absence <= now:
            actions += self._hold_absent(now) + self.rebalance(now)
        if self._next_tick is not None and self._next_tick <= now:
            self._next_tick, self.world.ticked = None, now
            self.policy.tick(self.world, now)
            actions += self.rebalance(now)
        return actions + self._clock(now)

    # --- LLM calls ------------------------------------------------------------------------

    def _step_ready(self, event: StepReady, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        if program is None:
            return []
        if event.step in program.started or event in program.ready:
            return []
        room = self._longest.get(event.engine, 0)
        if room and event.prompt >= room:  # it would be held for ever
            return [RefuseStep(event.engine, program.id, event.step, event.prompt, room)]
        lineage = program.lineages.setdefault(event.lineage, Lineage(event.lineage, event.engine))
        graph = self.world.graph(program.about.agent)
        if lineage.waiting is not None:
            graph.durations.observe(lineage.waiting, now - lineage.since)
            program.gap = now - lineage.since
            if lineage.forecast is not None:
                graph.calibrate(lineage.forecast, now - lineage.since, event.state)
            lineage.waiting = lineage.forecast = None
        graph.observe(lineage.state, event.state)
        shared = lineage.shared if lineage.context or lineage.shared else graph.shared
        self.world.resize(program, lineage, event.prompt, min(shared, event.prompt))
        lineage.state, lineage.prompt, lineage.forked = event.state, event.prompt, False
        if program.active:
            return [self._start(program, event, now)]
        if program.begun and not program.ready:  # from now on it waits for a place
            program.since = now
            program.due = self._due(program)
        program.ready.append(event)
        self.world.reconsider(program, self.policy.order(self.world, program))
        self.world.held.wait(program)
        host = self.world.places.park(program) if self.policy.parks else None
        aside: list[Action] = [ParkEnvs(host, program.id)] if host is not None else []
        return [*aside, *self.rebalance(now)]

    def _start(self, program: Program, step: StepReady, now: float) -> StartStep:
        self.world.start(program, step.step, step.lineage)
        priority = self.policy.priority(self.world, program, step, now)
        return StartStep(step.engine, step.program, step.step, priority)

    def _step_finished(self, event: StepFinished, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        lineage = program.lineages.get(event.lineage) if program else None
        if program is None or lineage is None:
            return []
        self._served(program, event, now)
        output = max(0, event.context - lineage.prompt)
        self.world.load.observe(program.gap, event.queued + event.service)
        self.world.cost = self.world.cost.learn(event.computed, event.seconds)
        quickest = self.world.quickest
        quickest.learn(event.computed, event.seconds, output, event.service - event.seconds)
        shared = lineage.shared
        if program.steps == 1 and len(program.lineages) == 1:  # what it found was not its own
            shared = max(0, lineage.prompt - event.computed)
            self.world.graph(program.about.agent).shared = shared
        self.world.resize(program, lineage, event.context, min(shared, event.context))
        lineage.since = now
        lineage.waiting = "+".join(sorted(set(event.calls)))
        graph = self.world.graph(program.about.agent)
        lineage.forecast = graph.forecast(lineage.state, lineage.waiting) if event.calls else None
        left = graph.service_left(program.places)
        program.trail.append((program.service, left or 0.0))
        self.world.reclaim(program, self.policy.claim(self.world, program))
        if event.final:
            return []
        what = self.policy.retain(self.world, program, lineage, now)
        actions = self._keep(program, lineage, what, now)
        if program.acting and program.active:
            if program.trial and (program.steps >= program.trial or program.shown is not None):
                actions += self._pause(program, now)
            else:
                actions += self._expect_back(program, now)
        return actions + self.rebalance(now)

    def _expect_back(self, program: Program, now: float) -> list[Action]:
        """Look after a program that has no call, when it has been absent for long."""
        seconds = self.policy.absent(self.world, program) if program.acting else None
        if seconds is None:
            return []
        program.since = now
        heapq.heappush(self._absences, (now + seconds, program.id, now))
        return self._look_after_absent(now + seconds)

    def _look_after_absent(self, at: float) -> list[Action]:
        if self._absence is not None and self._absence <= at:
            return []
        self._absence = at
        return self._wake(at)

    def _hold_absent(self, now: float) -> list[Action]:
        """Hold the programs that have been absent for too long."""
        actions, self._absence = list[Action](), None
        while self._absences:
            at, name, since = self._absences[0]
            program = self.world.programs.get(name)
            waits = program and program.active and program.acting and program.since == since
            if waits and at > now:
                return [*actions, *self._look_after_absent(at)]
            heapq.heappop(self._absences)
            if program is not None and waits:
                actions += self._pause(program, now)
        return actions

    def _step_failed(self, event: StepFailed, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        if program is None:
            return []
        self.world.stop(program, event.step)
        program.ready = [step for step in program.ready if step.step != event.step]
        program.since = now
        back = self._expect_back(program, now) if program.active else []
        return [*back, *self.rebalance(now)]

    def _decoded(self, event: Decoded, now: float) -> list[Action]:
        """The books follow a call while it runs, once it has said so much that it matters; what it
        said in all is known when it ends."""
        world, changed = self.world, False
        notice = _NOTICE * world.capacity
        for name, step, context in event.calls:
            program = world.programs.get(name)
            conversation = program.started.get(step) if program is not None else None
            if program is None or conversation is None:
                continue
            if step in world.pressed:
                world.pressed.remove(step)
                changed = True
            lineage = program.lineages[conversation]
            if context - lineage.context > notice:
                world.resize(program, lineage, context, lineage.shared)
                world.reclaim(program, self.policy.claim(world, program))
                changed = True
        return self.rebalance(now) if changed else []

    def _preempted(self, event: Preempted, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        if program is None or event.step not in program.started:
            return []
        self.world.pressed.add(event.step)
        return self.rebalance(now)

    def _served(self, program: Program, event: StepFinished, now: float) -> None:
        self.world.stop(program, event.step)
        program.service += event.service
        self.world.tenants.serve(program, event.service)
        program.steps += 1
        program.since = now
        self.world.queued.append(event.queued)

    def _keep(
        self, program: Program, lineage: Lineage, what: Retention, now: float
    ) -> list[Action]:
        engine, name = lineage.engine, program.id
        if isinstance(what, Keep):
            lineage.until = now + what.ttl
            return [LeaseKV(engine, name, lineage.id, what.ttl, what.value)]
        if isinstance(what, Drop):
            return [ReleaseKV(engine, name, lineage.id, True)]
        if not isinstance(what, Demote):
            return []
        demote: list[Action] = [DemoteKV(engine, name, lineage.id)]
        if what.back is None:
            return demote
        heapq.heappush(self._returns, (now + what.back, name, lineage.id, lineage.since))
        return demote + self._wake(now + what.back)

    def _forked(self, event: Forked, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        parent = program.lineages.get(event.parent) if program else None
        if program is None or parent is None or event.child in program.lineages:
            return []
        graph = self.world.graph(program.about.agent)
        state, parent.forked = graph.forked(parent.state), True
        program.show()
        there = parent.context or parent.shared
        shared = there if event.shared is None else min(event.shared, there)
        child = Lineage(event.child, event.engine, state, parent.id, shared=shared)
        program.lineages[event.child] = child
        return []

    def _lineage_ended(self, event: LineageEnded, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        lineage = program.lineages.pop(event.lineage, None) if program else None
        if program is None or lineage is None:
            return []
        self.world.drop(program, lineage)
        self.world.graph(program.about.agent).observe(lineage.state, END)
        program.ready = [step for step in program.ready if step.lineage != lineage.id]
        for step in [s for s, of in program.started.items() if of == lineage.id]:
            self.world.stop(program, step)  # it was given up: nobody will say that it ended
        back = self._expect_back(program, now) if program.active else []
        return [self._release(program, lineage), *back, *self.rebalance(now)]

    def _release(self, program: Program, lineage: Lineage, keep: bool = False) -> ReleaseKV:
        evict = self.policy.evict_at_end and not keep
        return ReleaseKV(lineage.engine, program.id, lineage.id, evict)

    # --- tools and environments -----------------------------------------------------------

    def _tool_named(self, event: ToolNamed, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        if program is None or event.env is None or not self.policy.claim_early:
            return []
        if event.env in program.envs and event.env not in program.about.fresh:
            return []
        self.world.places.took(program, event.env, now)
        claim = ClaimEnv(self._host_of(event.env), program.id, event.env)
        return [claim, *self.rebalance(now)]

    def _tool_started(self, event: ToolStarted, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        if program is None or event.env is None or event.env in program.envs:
            return []  # or it was claimed when its tool was named
        self.world.places.took(program, event.env, now)
        return self.rebalance(now)

    def _tool_ready(self, event: ToolReady, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        if program is None:
            return []
        priority = self.policy.tool(self.world, program, event, now)
        return [StartTool(event.host, program.id, event.call, priority)]

    def _host_up(self, event: HostUp, now: float) -> list[Action]:
        self.world.places.up(event)
        return self.rebalance(now)

    def _engine_up(self, event: EngineUp, now: float) -> list[Action]:
        self.world.engines[event.engine] = event.kv_tokens
        self._longest[event.engine] = event.longest
        self.world.host_tokens += event.host_tokens
        return self.rebalance(now)

    def _tenant_share(self, event: TenantShare, now: float) -> list[Action]:
        self.world.tenants.share(event)
        return self.rebalance(now)

    def _host_state(self, event: HostState, now: float) -> list[Action]:
        self.world.places.hosts[event.env] = event
        return self.rebalance(now)


__all__ = ["Scheduler"]
