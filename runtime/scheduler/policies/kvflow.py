"""`kvflow`: eviction by steps to execution, and prefetch before it (arXiv 2507.07400).

Of a workflow's agents, those whose turn is furthest lose their KV first, to host memory where
there is some; what comes next is brought back before its turn. A conversation that waits for a tool
is one step away; how far in seconds says the tool's median. Calls go in order of arrival.
"""

from drawloom.runtime.scheduler.policies.request_cap import RequestLevel
from drawloom.runtime.scheduler.policy import Demote, Keep, Retention
from drawloom.runtime.scheduler.program_state import ConversationState, ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_LONG = 600.0
_UNKNOWN = 5.0


class Kvflow(RequestLevel):
    name = "kvflow"
    spill = True

    def retain(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        durations = state.graph(program.submission.agent).durations
        away = durations.quantile(conversation.waiting or "", 0.5)
        away = _UNKNOWN if away is None else away
        copy = state.cost.restore(conversation.context)
        if state.host_tokens and state.tokens > state.capacity and away > 2 * copy:
            return Demote(away - copy)
        return Keep(_LONG, conversation.context / (1.0 + away))


__all__ = ["Kvflow"]
