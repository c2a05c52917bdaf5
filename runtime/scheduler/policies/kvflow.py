"""`kvflow`: eviction by steps to execution, and prefetch before it (arXiv 2507.07400).

The agents of a workflow whose turn is furthest lose their KV first, to host memory where there is
some; KV that is needed next is brought back before its turn. A conversation that waits for a tool
is one step away; how many seconds that is, the tool's median says. Calls go in order of arrival.
"""

from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.policies.request_cap import RequestLevel
from drawloom.runtime.scheduler.policy import Keep, MoveToHost, Retention
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_LONG = 600.0
_UNKNOWN = 5.0


class Kvflow(RequestLevel):
    """Evict the KV first that is needed last, and prefetch it in time."""

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
        median = durations.quantile(conversation.pending_tools or "", 0.5)
        away = _UNKNOWN if median is None else median
        copy = state.cost.restore(conversation.context)
        if state.host_tokens and state.totals.tokens > state.capacity and away > 2 * copy:
            return MoveToHost(away - copy)
        return Keep(_LONG, conversation.context / (1.0 + away))


__all__ = ["Kvflow"]
