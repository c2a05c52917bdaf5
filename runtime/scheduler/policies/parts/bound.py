"""Bounds on how long a program may wait."""

from math import inf

from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Bound:
    """Let programs wait without a bound (null object)."""

    def max_wait(self, state: SchedulerState, program: ProgramState) -> float:
        """Return the seconds that a program may wait in all before it is due.

        A due program goes ahead of all of its priority that become due later.
        """
        return inf


class Patience(Bound):
    """Bound the wait by a multiple of the time that programs of the agent take.

    That is their mean time from submission to end; of all agents' programs where none of the
    agent's has ended. A deadline makes a program due as long before it as such programs run.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def max_wait(self, state: SchedulerState, program: ProgramState) -> float:
        p, stats = self.parameters, state.graph(program.submission.agent).stats
        jct = state.jct.value if stats.mean_jct is None else stats.mean_jct
        allowed = p.patience_unknown if jct is None else p.patience * jct
        if program.submission.deadline is not None:
            runs = stats.mean_turnaround or 0.0
            left = program.submission.deadline - program.submitted_at - runs
            allowed = min(allowed, max(runs, left))
        return allowed


__all__ = ["Bound", "Patience"]
