"""Retention of KV, and of active programs, while they wait for tools."""

from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.events import CLIENT
from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.policy import (
    Absence,
    Keep,
    MoveToHost,
    PauseAfter,
    PauseNow,
    Retention,
)
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Residency:
    """Keep KV by least recent use alone, and programs active (null object)."""

    def retain(
        self, state: SchedulerState, program: ProgramState, conversation: ConversationState
    ) -> Retention:
        """Return what happens to a conversation's KV when a call has ended."""
        return None

    def retain_paused(self, state: SchedulerState) -> Retention:
        """Return what happens to the KV of a program that was paused."""
        return None

    def absence(self, state: SchedulerState, program: ProgramState, tools: str | None) -> Absence:
        """Return when an active program without a call is paused; None is never.

        Args:
            state: the scheduler's.
            program: at a tool boundary.
            tools: key of the tools that its last call asked for, if that is known.
        """
        return None


class Leases(Residency):
    """Lease KV for the 95th percentile of the time that tools take.

    This is Continuum's idea (arXiv 2511.02230); leases here are soft, so that the time to live
    bounds waste and blocks nobody. A program that has been absent for some leases is paused. One
    that answered over HTTP, without a tool call, may be over: it is paused at once while no program
    of its agent has gone on after an answer, else after as long as such programs usually take,
    whatever the leases of its KV.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def retain(
        self, state: SchedulerState, program: ProgramState, conversation: ConversationState
    ) -> Retention:
        durations = state.graph(program.submission.agent).durations
        tools = conversation.pending_tools or ""
        late = durations.quantile(tools, 0.95)
        ttl = self._ttl(late)
        chance = 0.5 if late is None else durations.share_within(tools, ttl)
        return Keep(ttl, chance * state.cost.recompute(conversation.context))

    def retain_paused(self, state: SchedulerState) -> Retention:
        return MoveToHost() if state.host_tokens else None

    def absence(self, state: SchedulerState, program: ProgramState, tools: str | None) -> Absence:
        durations = state.graph(program.submission.agent).durations
        late = None if tools is None else durations.quantile(tools, 0.95)
        p = self.parameters
        if tools != CLIENT:
            return PauseAfter(p.absent * self._ttl(late))
        if not late:
            return PauseNow()
        return PauseAfter(p.absent * min(p.longest, p.slack * late), outlast_leases=False)

    def _ttl(self, late: float | None) -> float:
        p = self.parameters
        return p.unknown if late is None else min(p.longest, max(p.shortest, p.slack * late))


__all__ = ["Leases", "Residency"]
