"""Handlers of events about programs, tenants and time."""

from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.graph.program_stats import ProgramSummary
from drawloom.graph.transition_model import END
from drawloom.runtime.scheduler.actions import Action, ReleaseEnvs, ScheduleTick
from drawloom.runtime.scheduler.events import (
    Expected,
    ProgramEnded,
    ProgramSubmitted,
    TenantShare,
    Tick,
)
from drawloom.runtime.scheduler.handlers import handles
from drawloom.runtime.scheduler.program_control import ProgramControl
from drawloom.runtime.scheduler.program_state import Phase, ProgramState

_GROWTH = 1.1  # of an agent's finished programs, after which reservations are computed again
_SLACK = 64


class ProgramEvents:
    """Keep the books of programs."""

    def __init__(self, control: ProgramControl) -> None:
        self._control, self._state, self._policy = control, control.state, control.policy
        self._reserved_at: dict[str, int] = {}
        self._next_tick: float | None = None

    @handles(ProgramSubmitted)
    def submitted(self, event: ProgramSubmitted, now: float) -> list[Action]:
        """Add a new program."""
        if event.program in self._state.programs:
            return []
        program = ProgramState(event, next(self._state.arrivals), now)
        program.declare_remaining(event.expect_steps)
        self._state.submit(program)
        self._control.hold(program, now)
        return [*self._control.rebalance(now), *self.start_clock(now)]

    @handles(Expected)
    def expected(self, event: Expected, now: float) -> list[Action]:
        """Take in how many LLM calls a program declares to come."""
        program = self._state.programs.get(event.program)
        if program is None:
            return []
        program.declare_remaining(event.steps)
        self._state.rerank(program, self._policy.agent_rank(self._state, program))
        return self._control.rebalance(now)

    @handles(ProgramEnded)
    def ended(self, event: ProgramEnded, now: float) -> list[Action]:
        """Learn from a program that ended, and release what it had."""
        program = self._state.programs.get(event.program)
        if program is None:
            return []
        self._state.transition(program, Phase.ENDED, now)
        graph = self._state.graph(program.submission.agent)
        if program.peak:
            self._learn(program, graph, now)
            self._update_reservations(graph)
        actions = list[Action]()
        for conversation in program.conversations.values():
            graph.transitions.observe(conversation.graph_state, END)
            actions += self._control.retention.release(program, conversation, event.keep)
        return [*actions, ReleaseEnvs(program.id), *self._control.rebalance(now)]

    def _learn(self, program: ProgramState, graph: ExecutionGraph, now: float) -> None:
        jct = now - program.submitted_at
        self._state.jct.add(jct)
        graph.finished(
            ProgramSummary(
                peak_tokens=program.peak,
                service=program.service,
                turnaround=now - program.admitted_at,
                jct=jct,
                steps=program.steps,
                trail=program.trail,
                size_known_at=program.size_known_at,
                declaration_growth=program.declaration_growth,
                declared_calls=program.declared_calls,
            )
        )
        self._state.graphs.learned(graph)

    def _update_reservations(self, graph: ExecutionGraph) -> None:
        """Compute the reservations of an agent's active programs again.

        Only each time that its history has grown by a tenth.
        """
        at, ended = self._reserved_at, graph.stats.programs
        if ended < at.get(graph.agent, 0) * _GROWTH + 1:
            return
        at[graph.agent] = ended
        for program in self._state.active_by_agent.get(graph.agent, {}).values():
            self._control.update_reservation(program)
        if len(at) > _SLACK + 2 * len(self._state.graphs):
            self._reserved_at = {a: n for a, n in at.items() if a in self._state.graphs}

    @handles(TenantShare)
    def tenant_share(self, event: TenantShare, now: float) -> list[Action]:
        """Change the weight and the limits of a tenant."""
        self._state.tenants.set_share(event)
        return self._control.rebalance(now)

    # --- time -----------------------------------------------------------------------------

    @handles(Tick)
    def tick(self, event: Tick, now: float) -> list[Action]:
        """Do everything that is due by now."""
        control = self._control
        actions = control.retention.prefetch_due(now)
        if control.absences.is_due(now):
            actions += control.pause_absent(now) + control.rebalance(now)
        if control.recheck_due(now):
            actions += control.rebalance(now)
        if self._next_tick is not None and self._next_tick <= now:
            self._next_tick, self._state.last_tick = None, now
            actions += control.rebalance(now)
        return actions + self.start_clock(now)

    def start_clock(self, now: float) -> list[Action]:
        """Ask for the policy's next tick, if it has a clock and there are programs."""
        period = self._policy.tick_seconds
        if period is None or self._next_tick is not None or not self._state.programs:
            return []
        self._next_tick = now + period
        return [ScheduleTick(self._next_tick)]


__all__ = ["ProgramEvents"]
