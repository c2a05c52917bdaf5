"""How long KV and places are kept while programs wait."""

from drawloom.runtime.scheduler.events import CLIENT
from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.policy import Demote, Keep, Retention
from drawloom.runtime.scheduler.program_state import ConversationState, ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Residency:
    """Nothing is kept but by the cache's own least-recently-used rule."""

    def retain(
        self, state: SchedulerState, program: ProgramState, conversation: ConversationState
    ) -> Retention:
        """Return what happens to a conversation's KV when a call has ended."""
        return None

    def paused(self, state: SchedulerState) -> Retention:
        """Return what happens to the KV of a program that was paused."""
        return None

    def absent(
        self, state: SchedulerState, program: ProgramState, tools: str | None
    ) -> float | None:
        """Return after how many seconds without a call a program gives up its place, whose last
        call asked for `tools`; None if that is not known."""
        return None


class Leases(Residency):
    """KV is leased for as long as tools take to return, at the 95th percentile of what was seen
    (Continuum's idea, arXiv 2511.02230; leases here are soft, so the time to live bounds waste and
    blocks nobody). A program that has waited for some leases gives up its place; one that answered
    over HTTP does so at once while none of its agent has gone on, and no later than usual for such.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def retain(
        self, state: SchedulerState, program: ProgramState, conversation: ConversationState
    ) -> Retention:
        durations = state.graph(program.submission.agent).durations
        late = durations.quantile(conversation.waiting or "", 0.95)
        ttl = self._ttl(late)
        chance = 0.5 if late is None else durations.share_within(conversation.waiting or "", ttl)
        return Keep(ttl, chance * state.cost.recompute(conversation.context))

    def paused(self, state: SchedulerState) -> Retention:
        return Demote() if state.host_tokens else None

    def absent(
        self, state: SchedulerState, program: ProgramState, tools: str | None
    ) -> float | None:
        durations = state.graph(program.submission.agent).durations
        late = None if tools is None else durations.quantile(tools, 0.95)
        p = self.parameters
        if tools == CLIENT:  # this one may be the last, as all are while none has been gone on with
            return 0.0 if late is None else p.absent * min(p.longest, p.slack * late)
        return p.absent * self._ttl(late)

    def _ttl(self, late: float | None) -> float:
        p = self.parameters
        return p.unknown if late is None else min(p.longest, max(p.shortest, p.slack * late))


__all__ = ["Leases", "Residency"]
