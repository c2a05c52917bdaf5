"""What policies share whose kept KV nobody may take before its time: `continuum`, `infercept`,
`saga` hold a call back while memory is pinned or in use, as the engines do that they change.

Leases here are soft: the engine would break them for any call that starts. So a call whose
program holds nothing waits in the scheduler until it fits beside what is pinned or computing; when
nothing computes, the first one goes on whatever it breaks (their guard against deadlock).
"""

from collections.abc import Iterator

from drawloom.runtime.scheduler.policies.request_cap import RequestLevel
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Pinning(RequestLevel):
    def pause(self, state: SchedulerState, now: float) -> Iterator[ProgramState]:
        for program in [p for p in state.active.values() if p.at_tool_boundary]:
            if all(conversation.until <= now for conversation in program.conversations.values()):
                yield program

    def admit(self, state: SchedulerState, now: float) -> Iterator[ProgramState]:
        waiting = [p for p in state.wait_queue.ranked() if p.pending_steps]
        for program in waiting:
            if not self.takes(state, program):
                return
            yield program

    def takes(self, state: SchedulerState, program: ProgramState) -> bool:
        computing = any(p.running for p in state.active.values())
        fits = state.tokens + program.tokens <= state.capacity
        return bool(program.pending_steps) and (fits or not computing)


__all__ = ["Pinning"]
