"""`infercept`: preserve, swap or discard by least waste (arXiv 2402.01869).

Waste is memory held for nothing, in token-seconds: preserving C tokens for t seconds wastes t C;
discarding wastes half of their recomputation, chunked beside others, ``F(C) (C + C_other) / 2``;
swapping twice the copy beside what computes, ``2 S(C) C_batch``. How long the tool takes is
estimated by how long it has taken so far, so the KV is kept until preserving has cost as much as
the cheaper alternative would. Calls keep their program's place in the queue.
"""

from drawloom.runtime.scheduler.events import StepReady
from drawloom.runtime.scheduler.policies.pinning import Pinning
from drawloom.runtime.scheduler.policy import Demote, Keep, Retention
from drawloom.runtime.scheduler.program_state import ConversationState, ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Infercept(Pinning):
    name = "infercept"
    spill = True

    def priority(
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
        context, others = conversation.context, max(0, state.tokens - conversation.context)
        discard = state.cost.recompute(context) * (context + others) / 2
        swap = 2 * state.cost.restore(context) * others
        if state.host_tokens and swap < discard:
            expected = state.graph(program.submission.agent).durations.quantile(
                conversation.waiting or "", 0.5
            )
            if expected is not None and expected * context > swap:
                return Demote()
            return Keep(max(0.1, swap / max(1, context)), discard / max(1, others))
        return Keep(max(0.1, discard / max(1, context)), discard / max(1, others))


__all__ = ["Infercept"]
