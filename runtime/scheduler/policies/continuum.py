"""`continuum`: KV time to live by expected benefit, and program order (arXiv 2511.02230).

At a tool boundary the KV is kept for the τ that maximises ``P(τ, tool) (T η + reload) - τ``: P is
the empirical distribution of the tool's return times, T the mean queueing delay of calls, η = 1
(turns left say nothing about turns done). Order: calls whose KV is kept, then programs in order
of arrival. If the first waiting call does not fit, the pinned program that arrived last is
paused for it, and so on; if memory runs out, that one loses its KV first.
"""

from bisect import bisect_right
from collections.abc import Iterator

from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.events import StepReady
from drawloom.runtime.scheduler.policies.pinning import Pinning
from drawloom.runtime.scheduler.policy import Keep, Retention
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_FIRST = 1e9
_DEFAULT = 2.0


class Continuum(Pinning):
    """Pin KV for the time of the largest expected benefit."""

    name = "continuum"
    spill = True

    def pause(self, state: SchedulerState, now: float) -> Iterator[ProgramState]:
        yield from super().pause(state, now)
        head = next((p for p in state.wait_queue.ranked() if p.pending_steps), None)
        programs = (p for p in state.active.values() if p.at_tool_boundary)
        pinned = sorted(programs, key=lambda program: program.index)
        while head and pinned and state.totals.tokens + head.tokens > state.capacity:
            yield pinned.pop()

    def step_priority(
        self, state: SchedulerState, program: ProgramState, step: StepReady, now: float
    ) -> float:
        pinned = now <= program.conversations[step.conversation].lease_end
        return program.index - (_FIRST if pinned else 0.0)

    def retain(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        durations = state.graph(program.submission.agent).durations
        samples = durations.samples(conversation.pending_tools or "")
        cost = state.cost
        reload = cost.recompute(conversation.context)
        if state.host_tokens:
            reload = min(reload, cost.restore(conversation.context))
        waits = state.queue_seconds
        queueing = sum(waits) / len(waits) if waits else 0.0
        ttl = best_ttl(samples, queueing + reload) if samples else _DEFAULT
        if ttl <= 0:
            return None
        return Keep(ttl, conversation.context / (1 + program.index))


def best_ttl(samples: list[float], benefit: float) -> float:
    """Return the τ of the largest ``P(τ) benefit - τ``, among the sorted samples and 0."""
    best, found = 0.0, 0.0
    for at, seconds in enumerate(samples):
        if at + 1 < len(samples) and samples[at + 1] == seconds:
            continue
        gain = bisect_right(samples, seconds) / len(samples) * benefit - seconds
        if gain > best:
            best, found = gain, seconds
    return found


__all__ = ["Continuum", "best_ttl"]
