"""Base of policies that pin KV: `continuum`, `infercept`, `saga`.

They hold a call back while memory is pinned or in use, as the engines do that they change. Leases
here are soft: the engine would break them for any call that starts. So a call whose program holds
nothing waits in the scheduler until it fits beside what is pinned or computing; when nothing
computes, the first one starts whatever it breaks (their guard against deadlock).
"""

from collections.abc import Iterator

from drawloom.runtime.scheduler.policies.request_cap import RequestLevel
from drawloom.runtime.scheduler.policy import Grant
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Pinning(RequestLevel):
    """Admit calls that fit beside pinned KV."""

    def pause(self, state: SchedulerState, now: float) -> Iterator[ProgramState]:
        for program in [p for p in state.active.values() if p.at_tool_boundary]:
            if all(one.lease_end <= now for one in program.conversations.values()):
                yield program

    def admit(self, state: SchedulerState, now: float) -> Iterator[Grant]:
        for program in [p for p in state.wait_queue.ranked() if p.pending_steps]:
            if not self.would_admit(state, program):
                return
            yield self.grant(state, program)

    def would_admit(self, state: SchedulerState, program: ProgramState) -> bool:
        computing = state.totals.computing_programs > 0
        fits = state.totals.tokens + program.tokens <= state.capacity
        return bool(program.pending_steps) and (fits or not computing)


__all__ = ["Pinning"]
