"""`infercept`: preserve, swap or discard by least waste (arXiv 2402.01869).

Waste is memory held for nothing, in token-seconds: preserving C tokens for t seconds wastes t C;
discarding wastes half of their recomputation, chunked among others, ``F(C) (C + C_other) / 2``;
swapping twice the copy beside what computes, ``2 S(C) C_batch``. How long the tool takes is
estimated by how long it has taken so far, so the KV is kept until preserving has cost as much as
the cheaper alternative would. Calls keep their program's place in the queue.
"""

from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.events import StepReady
from drawloom.runtime.scheduler.policies.pinning import Pinning
from drawloom.runtime.scheduler.policy import Keep, MoveToHost, Retention
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Infercept(Pinning):
    """Preserve, swap or discard KV, whichever wastes least."""

    name = "infercept"
    spill = True

    def step_priority(
        self, state: SchedulerState, program: ProgramState, step: StepReady, now: float
    ) -> float:
        return program.index

    def retain(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        context = conversation.context
        others = max(0, state.totals.tokens - context)
        discard = state.cost.recompute(context) * (context + others) / 2
        swap = 2 * state.cost.restore(context) * others
        if state.host_tokens and swap < discard:
            durations = state.graph(program.submission.agent).durations
            median = durations.quantile(conversation.pending_tools or "", 0.5)
            if median is not None and median * context > swap:
                return MoveToHost()
            return Keep(max(0.1, swap / max(1, context)), discard / max(1, others))
        return Keep(max(0.1, discard / max(1, context)), discard / max(1, others))


__all__ = ["Infercept"]
