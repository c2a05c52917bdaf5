"""The core: one event at a time, in; what to do about it, out.

Pure: the time is an argument, the same events give the same actions, and late, doubled or
unknown ones are harmless. It runs live in front of the engine, and in the simulator and in tests
under a virtual clock.
"""

import heapq
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.graph.program_stats import ProgramSummary
from drawloom.graph.transition_model import END
from drawloom.runtime.scheduler.actions import (
    Action,
    Admit,
    DemoteKV,
    LeaseKV,
    PrefetchKV,
    ReleaseEnvs,
    ReleaseKV,
    Wake,
)
from drawloom.runtime.scheduler.engines import Engines
from drawloom.runtime.scheduler.env_claims import EnvClaims
from drawloom.runtime.scheduler.events import (
    CLIENT,
    ConversationEnded,
    Decoded,
    EngineDown,
    EngineDrain,
    EngineLoad,
    EngineUp,
    Event,
    Expected,
    Forked,
    HostState,
    HostUp,
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
from drawloom.runtime.scheduler.lazy_heap import Heap
from drawloom.runtime.scheduler.llm_calls import Calls
from drawloom.runtime.scheduler.policy import Demote, Drop, Keep, Policy, Retention
from drawloom.runtime.scheduler.program_state import ConversationState, ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_GROWTH = 1.1
_SLACK = 64


class Scheduler:
    """Keeps the state of one engine, asks the policy; `shared_with` is another engine's state."""

    def __init__(self, policy: Policy, shared_with: "SchedulerState | None" = None) -> None:
        self.policy = policy
        self.state = SchedulerState(shared_with)
        self.state.wait_queue.rank = lambda program: self.policy.rank(self.state, program)
        self.state.wait_queue.due_at = self.due
        self._promised: dict[str, int] = {}
        self._next_tick: float | None = None
        self._wakes: list[float] = []
        self._returns: list[tuple[float, str, str, float]] = []
        self._absences = Heap[tuple[float, str]](self._is_absent)
        self._absence_wake: float | None = None
        self._again: float | None = None
        self.calls, self.engines, self.env_claims = Calls(self), Engines(self), EnvClaims(self)
        self._handlers: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            ProgramSubmitted: self._submitted,
            Expected: self._expected,
            StepReady: self.calls.ready,
            StepFinished: self.calls.finished,
            StepFailed: self.calls.failed,
            Decoded: self.calls.decoded,
            Preempted: self.calls.preempted,
            Forked: self.calls.forked,
            ConversationEnded: self.calls.ended,
            ToolNamed: self.env_claims.named,
            ToolReady: self.env_claims.ready,
            ToolStarted: self.env_claims.started,
            ToolFinished: lambda event, now: [],
            ProgramEnded: self._program_ended,
            EngineUp: self.engines.up,
            EngineDown: self.engines.down,
            EngineDrain: self.engines.drain,
            EngineLoad: self.engines.load,
            HostUp: self.env_claims.up,
            HostState: self.env_claims.state,
            TenantShare: self._tenant_share,
            Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event at time `now` (seconds; never goes back)."""
        self.state.pass_time(now)
        return self._handlers[type(event)](event, now)

    # --- programs -------------------------------------------------------------------------

    def _submitted(self, event: ProgramSubmitted, now: float) -> list[Action]:
        if event.program in self.state.programs:
            return []
        program = ProgramState(event, next(self.state.arrivals), now)
        program.declare_remaining(event.expect_steps)
        self.state.submit(program)
        self.hold(program, now)
        return [*self.rebalance(now), *self._clock(now)]

    def _expected(self, event: Expected, now: float) -> list[Action]:
        program = self.state.programs.get(event.program)
        if program is None:
            return []
        program.declare_remaining(event.steps)
        self.state.rerank(program, self.policy.order(self.state, program))
        return self.rebalance(now)

    def _program_ended(self, event: ProgramEnded, now: float) -> list[Action]:
        program = self.state.programs.get(event.program)
        if program is None:
            return []
        self.state.end(program)
        graph = self.state.graph(program.submission.agent)
        if program.peak:
            jct = now - program.submitted_at
            self.state.ended_after(jct)
            graph.finished(
                ProgramSummary(
                    program.peak,
                    program.service,
                    now - program.admitted_at,
                    jct,
                    program.steps,
                    program.trail,
                    size_known_at=program.size_known_at,
                    declaration_growth=program.declaration_growth,
                    declared_calls=program.declared_calls,
                )
            )
            self.state.graphs.learned(graph)
            self._promise(graph)
        actions: list[Action] = []
        for conversation in program.conversations.values():
            graph.transitions.observe(conversation.state, END)
            actions += self.calls.release(program, conversation, event.keep)
        return [*actions, ReleaseEnvs(program.id), *self.rebalance(now)]

    def _promise(self, graph: ExecutionGraph) -> None:
        """Each time that an agent's history has grown by a tenth, promise its active programs what
        it says now."""
        known = self._promised
        if graph.stats.programs < known.get(graph.agent, 0) * _GROWTH + 1:
            return
        known[graph.agent] = graph.stats.programs
        for program in self.state.active_by_agent.get(graph.agent, {}).values():
            self.state.update_reservation(program, self.policy.reserve(self.state, program))
        if len(known) > _SLACK + 2 * len(self.state.graphs):
            self._promised = {a: n for a, n in known.items() if a in self.state.graphs}

    def rebalance(self, now: float) -> list[Action]:
        """Pause and admit programs, after anything that may have changed which of them run."""
        state, actions = self.state, list[Action]()
        for program in self.policy.pause(state, now):
            actions += self.pause(program, now)
        if not state.closed:
            for program in self.policy.admit(state, now):
                actions += self._activate(program, now)
            actions += self._look_again(now)
        return actions + self.env_claims.warm_targets(now)

    def _look_again(self, now: float) -> list[Action]:
        """Ask for a tick when more programs may be admitted, though nothing else happens."""
        seconds = None if self.state.wait_queue.first is None else self.policy.again(self.state)
        at = None if seconds is None else now + seconds
        if at is None or (self._again is not None and self._again <= at):
            return []
        self._again = at
        return self._wake(at)

    def _activate(self, program: ProgramState, now: float) -> list[Action]:
        actions: list[Action] = [] if program.begun else [Admit(program.id)]
        program.probation_calls = self.policy.look(self.state, program)
        program.reserved_tokens = self.policy.reserve(self.state, program)
        program.expected_load = self.policy.adds(self.state, program)
        self.engines.settle(program)
        self.state.activate(program, now)
        actions += self.expect_back(program, now)
        return [*actions, *self.env_claims.claim_all(program, now), *self.resume(program, now)]

    def resume(self, program: ProgramState, now: float) -> list[Action]:
        """Start the calls of an active program that were held."""
        ready, program.pending_steps = program.pending_steps, {}
        return [self.calls.start(program, step, now) for step in ready.values()]

    def due(self, program: ProgramState) -> float:
        """Return the time at which a held program is due, by what is known of its agent now."""
        return program.waiting_since + max(
            0.0, self.policy.due(self.state, program) - program.waited_seconds
        )

    def hold(self, program: ProgramState, now: float) -> None:
        """Hold a program, new or active, from now on."""
        program.waiting_since = now
        program.due_at = self.due(program)
        self.state.hold(program, self.policy.order(self.state, program), now)

    def wait(self, program: ProgramState) -> None:
        """Let a held program compete, whose calls have become others."""
        self.state.rerank(program, self.policy.order(self.state, program))
        self.state.wait_queue.wait(program)

    def pause(self, program: ProgramState, now: float) -> list[Action]:
        """Hold an active program."""
        program.probation_calls = 0
        self.hold(program, now)
        actions: list[Action] = []
        for conversation in program.conversations.values():
            what = self.policy.paused(self.state, program, conversation, now)
            actions += self.keep(program, conversation, what, now)
        return actions

    # --- programs that change their engine ------------------------------------------------

    def withdraw(self, program: ProgramState) -> None:
        """A program leaves, at a tool boundary; it goes on at another engine."""
        self.state.withdraw(program)

    def accept(self, program: ProgramState, engine: str, now: float) -> list[Action]:
        """A program comes from another engine, its KV on its way if it has any."""
        program.pending_steps = {
            n: replace(step, engine=engine) for n, step in program.pending_steps.items()
        }
        for conversation in program.conversations.values():
            conversation.engine = engine
        program.due_at = self.due(program)
        self.state.accept(program, self.policy.order(self.state, program))
        return [*self.rebalance(now), *self._clock(now)]

    # --- time -----------------------------------------------------------------------------

    def _clock(self, now: float) -> list[Action]:
        """Ask for the policy's next tick, if it has a clock and there is anything to do."""
        if self.policy.period is None or self._next_tick is not None or not self.state.programs:
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
            _, name, key, since = heapq.heappop(self._returns)
            program = self.state.programs.get(name)
            conversation = program.conversations.get(key) if program else None
            waits = (
                conversation is not None
                and conversation.waiting is not None
                and conversation.since == since
            )
            if conversation is not None and waits and conversation.engine in self.state.engines:
                actions.append(PrefetchKV(conversation.engine, name, key))
        if self._absence_wake is not None and self._absence_wake <= now:
            actions += self._hold_absent(now) + self.rebalance(now)
        if self._again is not None and self._again <= now:
            self._again = None
            actions += self.rebalance(now)
        if self._next_tick is not None and self._next_tick <= now:
            self._next_tick, self.state.last_tick = None, now
            self.policy.tick(self.state, now)
            actions += self.rebalance(now)
        return actions + self._clock(now)

    def expect_back(
        self, program: ProgramState, now: float, tools: str | None = None
    ) -> list[Action]:
        """Look after an active program that has no call, when it has been absent for long. Its last
        call asked for `tools`, if that is known; other conversations of it may wait for longer."""
        if not (program.at_tool_boundary and program.active):
            return []
        seconds = self.policy.absent(self.state, program, tools)
        if seconds is None:
            return []
        if not seconds:
            return self.pause(program, now)
        leased = 0.0 if tools == CLIENT else program.until
        program.absent_at = max(now + seconds, leased)
        self._absences.push((program.absent_at, program.id))
        return self._look_after_absent()

    def _look_after_absent(self) -> list[Action]:
        """Ask for a tick when the next program will have been absent for too long."""
        first = self._absences.least
        if first is None or (self._absence_wake is not None and self._absence_wake <= first[0]):
            return []
        self._absence_wake = first[0]
        return self._wake(first[0])

    def _hold_absent(self, now: float) -> list[Action]:
        """Hold the programs that have been absent for too long."""
        actions, self._absence_wake = list[Action](), None
        while (first := self._absences.least) is not None and first[0] <= now:
            actions += self.pause(self.state.programs[first[1]], now)
        return actions + self._look_after_absent()

    def _is_absent(self, entry: tuple[float, str]) -> bool:
        program = self.state.programs.get(entry[1])
        return program is not None and program.absent_at == entry[0]

    def keep(
        self, program: ProgramState, conversation: ConversationState, what: Retention, now: float
    ) -> list[Action]:
        """Say what becomes of a conversation's KV."""
        engine, name = conversation.engine, program.id
        if isinstance(what, Keep):
            conversation.until = now + what.ttl
            program.until = max(program.until, conversation.until)
            return [LeaseKV(engine, name, conversation.id, what.ttl, what.value)]
        if isinstance(what, Drop):
            return [ReleaseKV(engine, name, conversation.id, True)]
        if not isinstance(what, Demote):
            return []
        demote: list[Action] = [DemoteKV(engine, name, conversation.id)]
        if what.back is None:
            return demote
        heapq.heappush(self._returns, (now + what.back, name, conversation.id, conversation.since))
        return demote + self._wake(now + what.back)

    def _tenant_share(self, event: TenantShare, now: float) -> list[Action]:
        self.state.tenants.share(event)
        return self.rebalance(now)


__all__ = ["Scheduler"]
