"""KV of conversations that wait for tools: leases, copies to host memory, prefetches."""

import heapq

from drawloom.runtime.scheduler.actions import (
    Action,
    DemoteKV,
    LeaseKV,
    PrefetchKV,
    ReleaseKV,
    ScheduleTick,
)
from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.engine_registry import EngineRegistry
from drawloom.runtime.scheduler.policy import Drop, Keep, MoveToHost, Policy, Retention
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class KVRetention:
    """Carry out a policy's decisions on KV."""

    def __init__(self, state: SchedulerState, policy: Policy, engines: EngineRegistry) -> None:
        self._state, self._policy, self._engines = state, policy, engines
        self._prefetches: list[tuple[float, str, str, float]] = []

    def apply(
        self, program: ProgramState, conversation: ConversationState, what: Retention, now: float
    ) -> list[Action]:
        """Carry out a decision on a conversation's KV."""
        engine, name = conversation.engine, program.id
        if isinstance(what, Keep):
            conversation.lease_end = now + what.ttl
            program.lease_end = max(program.lease_end, conversation.lease_end)
            return [LeaseKV(engine, name, conversation.id, what.ttl, what.value)]
        if isinstance(what, Drop):
            return [ReleaseKV(engine, name, conversation.id, True)]
        if not isinstance(what, MoveToHost):
            return []
        demote: list[Action] = [DemoteKV(engine, name, conversation.id)]
        if what.back_after is None:
            return demote
        at = now + what.back_after
        heapq.heappush(self._prefetches, (at, name, conversation.id, conversation.call_ended_at))
        return [*demote, ScheduleTick(at)]

    def prefetch_due(self, now: float) -> list[Action]:
        """Prefetch the KV of conversations that are due, and still wait for the same tools."""
        actions = list[Action]()
        while self._prefetches and self._prefetches[0][0] <= now:
            _, name, key, ended_at = heapq.heappop(self._prefetches)
            program = self._state.programs.get(name)
            conversation = program.conversations.get(key) if program else None
            if conversation is None or conversation.engine not in self._state.engines:
                continue
            if conversation.pending_tools is not None and conversation.call_ended_at == ended_at:
                actions.append(PrefetchKV(conversation.engine, name, key))
        return actions

    def release(
        self, program: ProgramState, conversation: ConversationState, keep: bool = False
    ) -> list[Action]:
        """Release the KV of a finished conversation, unless it was lost.

        Args:
            program: the conversation's.
            conversation: has ended.
            keep: leave its blocks in the cache, as somebody may go on from them.
        """
        if conversation.engine in self._engines.gone:
            return []
        evict = self._policy.evict_at_end and not keep
        return [ReleaseKV(conversation.engine, program.id, conversation.id, evict)]


__all__ = ["KVRetention"]
