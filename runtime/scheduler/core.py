"""The core: one event at a time, in; what to do about it, out.

Pure: the time is an argument, the same events give the same actions, and late, doubled or
unknown ones are harmless. It runs live in front of the engine, and in tests under a virtual clock.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from drawloom.actions import (
    Action,
    Admit,
    ClaimEnv,
    LeaseKV,
    ReleaseEnvs,
    ReleaseKV,
    StartStep,
    WarmEnv,
)
from drawloom.events import (
    EngineUp,
    Event,
    Forked,
    HostState,
    LineageEnded,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
    ToolFinished,
    ToolNamed,
    ToolStarted,
)
from drawloom.graph.execution import END
from drawloom.runtime.scheduler.policy import Policy
from drawloom.runtime.scheduler.world import Lineage, Program, World


class Scheduler:
    """Keeps the world, asks the policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.world = World()
        self._arrivals = 0
        self._targets: dict[str, int] = {}
        self._hosts: dict[str, str] = {}
        self._handlers: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            ProgramSubmitted: self._submitted,
            StepReady: self._step_ready,
            StepFinished: self._step_finished,
            ToolNamed: self._tool_named,
            ToolStarted: self._tool_started,
            ToolFinished: lambda event, now: [],
            Forked: self._forked,
            LineageEnded: self._lineage_ended,
            ProgramEnded: self._program_ended,
            EngineUp: self._engine_up,
            HostState: self._host_state,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event at time `now` (seconds; never goes back)."""
        return self._handlers[type(event)](event, now)

    # --- programs -------------------------------------------------------------------------

    def _submitted(self, event: ProgramSubmitted, now: float) -> list[Action]:
        if event.program in self.world.programs:
            return []
        self._arrivals += 1
        self.world.programs[event.program] = Program(event, self._arrivals, now)
        return self._rebalance(now)

    def _program_ended(self, event: ProgramEnded, now: float) -> list[Action]:
        program = self.world.programs.pop(event.program, None)
        if program is None:
            return []
        graph = self.world.graph(program.about.agent)
        if program.peak:
            graph.finished(program.peak)
        actions: list[Action] = []
        for lineage in program.lineages.values():
            graph.observe(lineage.state, END)
            actions.append(self._release(program, lineage, event.keep))
        return [*actions, ReleaseEnvs(program.id), *self._rebalance(now)]

    def _rebalance(self, now: float) -> list[Action]:
        """Admissions and warm targets, after anything that may have changed them."""
        actions: list[Action] = []
        for program in self.policy.admit(self.world, now):
            program.admitted = True
            actions.append(Admit(program.id))
        for env in {e for p in self.world.programs.values() for e in p.about.envs} | set(
            self._targets
        ):
            wanted = self.policy.warm(self.world, env)
            if wanted != self._targets.get(env, 0):
                self._targets[env] = wanted
                actions.append(WarmEnv(self._hosts.get(env, ""), env, wanted))
        return actions

    # --- LLM calls ------------------------------------------------------------------------

    def _step_ready(self, event: StepReady, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        if program is None:
            return []
        lineage = program.lineages.setdefault(event.lineage, Lineage(event.lineage, event.engine))
        graph = self.world.graph(program.about.agent)
        if lineage.waiting is not None:
            graph.durations.observe(lineage.waiting, now - lineage.since)
            lineage.waiting = None
        graph.observe(lineage.state, event.state)
        lineage.state, lineage.context = event.state, event.prompt
        priority = self.policy.priority(self.world, program, now)
        return [StartStep(event.engine, event.program, event.step, priority)]

    def _step_finished(self, event: StepFinished, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        lineage = program.lineages.get(event.lineage) if program else None
        if program is None or lineage is None:
            return []
        self.world.cost = self.world.cost.learn(event.computed, event.seconds)
        lineage.context, lineage.since = event.context, now
        lineage.waiting = "+".join(sorted(set(event.calls)))
        program.peak = max(program.peak, program.context)
        if event.final:
            return []
        terms = self.policy.retain(self.world, program, lineage, now)
        if terms is None:
            return []
        return [LeaseKV(lineage.engine, program.id, lineage.id, *terms)]

    def _forked(self, event: Forked, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        parent = program.lineages.get(event.parent) if program else None
        if program is not None and parent is not None:
            child = Lineage(event.child, event.engine, parent.state)
            program.lineages.setdefault(event.child, child)
        return []

    def _lineage_ended(self, event: LineageEnded, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        lineage = program.lineages.pop(event.lineage, None) if program else None
        if program is None or lineage is None:
            return []
        self.world.graph(program.about.agent).observe(lineage.state, END)
        return [self._release(program, lineage)]

    def _release(self, program: Program, lineage: Lineage, keep: bool = False) -> ReleaseKV:
        evict = self.policy.evict_at_end() and not keep
        return ReleaseKV(lineage.engine, program.id, lineage.id, evict)

    # --- tools and environments -----------------------------------------------------------

    def _tool_named(self, event: ToolNamed, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        early = self.policy.claim_early() and event.env is not None
        if program is None or not early or event.env is None or event.env in program.envs:
            return []
        self._took(program, event.env)
        claim = ClaimEnv(self._hosts.get(event.env, ""), program.id, event.env)
        return [claim, *self._rebalance(now)]

    def _tool_started(self, event: ToolStarted, now: float) -> list[Action]:
        program = self.world.programs.get(event.program)
        if program is None or event.env is None or event.env in program.envs:
            return []
        self._took(program, event.env)
        return self._rebalance(now)

    def _took(self, program: Program, env: str) -> None:
        """One environment fewer is ready, though its host has not said so yet."""
        program.envs.add(env)
        host = self.world.hosts.get(env)
        if host is not None:
            self.world.hosts[env] = replace(host, warm=max(0, host.warm - 1))

    def _engine_up(self, event: EngineUp, now: float) -> list[Action]:
        self.world.engines[event.engine] = event.kv_tokens
        return self._rebalance(now)

    def _host_state(self, event: HostState, now: float) -> list[Action]:
        self.world.hosts[event.env] = event
        self._hosts[event.env] = event.host
        return self._rebalance(now)


__all__ = ["Scheduler"]
