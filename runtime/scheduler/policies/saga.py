"""`saga`: workflow-aware LRU, tool-aware time to live, agent fair share (arXiv 2605.00528).

KV is kept for the 95th percentile of a log-normal fit of the tool's durations, shorter under
pressure (m from 70 to 90 % of memory), at most 300 s. The KV goes first that scores most by
``0.3 idle + 0.5 (1 - reuse) + 0.2 size``; reuse on a chain is the share of the next prompt that the
context makes up. Between tenants calls go by urgency: work left over slack to a deadline of 1.5
times the expected time. Affinity, stealing and migration need more engines than one
(`multi_engine.py`).
"""

import math
import statistics

from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.events import StepReady
from drawloom.runtime.scheduler.policies.pinning import Pinning
from drawloom.runtime.scheduler.policy import Keep, Retention
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_BETA, _GAMMA = 0.5, 0.2
_SOFT, _HARD = 0.7, 0.9
_MOST, _COLD = 300.0, 5.0
_P95 = 1.6449
_OBSERVED = 500


class Saga(Pinning):
    """Pin KV for as long as tools take, shorter under pressure."""

    name = "saga"
    spill = True
    evict_at_end = True

    def step_priority(
        self, state: SchedulerState, program: ProgramState, step: StepReady, now: float
    ) -> float:
        tenants = {p.submission.tenant for p in state.active.values()}
        if len(tenants) < 2:
            return 0.0
        tenant = program.submission.tenant
        mine = (p for p in state.active.values() if p.submission.tenant == tenant)
        return -sum(self._urgency(state, p, now) for p in mine)

    def _urgency(self, state: SchedulerState, program: ProgramState, now: float) -> float:
        services = state.graph(program.submission.agent).stats.services
        expected = statistics.fmean(services) if services else 60.0
        left = max(1.0, expected - program.service)
        return left / max(1.0, program.submitted_at + 1.5 * expected - now)

    def retain(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        durations = state.graph(program.submission.agent).durations
        samples = durations.samples(conversation.pending_tools or "")
        late = _late(samples) if samples else _COLD
        used = state.totals.tokens / max(1, state.capacity)
        pressure = max(0.0, (used - _SOFT) / (_HARD - _SOFT))
        ttl = min(late * max(0.0, 1 - 0.5 * pressure), _MOST)
        if ttl <= 0:
            return None
        reuse = conversation.context / (conversation.context + _OBSERVED)
        size = conversation.context / max(1, state.capacity)
        return Keep(ttl, conversation.context * (1 - _BETA * (1 - reuse) - _GAMMA * size))


def _late(samples: list[float]) -> float:
    """Return the 95th percentile of a log-normal with the samples' median and deviation."""
    logs = [math.log(max(1e-3, s)) for s in samples]
    deviation = statistics.pstdev(logs)
    return math.exp(statistics.median(logs) + _P95 * deviation)


__all__ = ["Saga"]
