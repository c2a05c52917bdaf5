"""`static-cap:N`: at most N programs at a time, first come first served, nothing else.

The baseline that the papers leave out: most of what they report is their rival beyond the load that
it can carry. Swept over N it is the strongest of the simple ones.
"""

from collections.abc import Iterator

from drawloom.runtime.scheduler.policy import Grant, Policy
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class StaticCap(Policy):
    """Run a fixed number of programs in order of arrival.

    Args:
        programs: how many.
    """

    name = "static-cap"
    spill = True

    def __init__(self, programs: float = 16) -> None:
        if programs < 1:
            raise ValueError(programs)
        self.programs = int(programs)
        self.name = f"static-cap:{self.programs}"

    def admit(self, state: SchedulerState, now: float) -> Iterator[Grant]:
        while (program := state.wait_queue.first) is not None:
            if not self.would_admit(state, program):
                return
            yield self.grant(state, program)

    def would_admit(self, state: SchedulerState, program: ProgramState) -> bool:
        return len(state.active) < self.programs


__all__ = ["StaticCap"]
