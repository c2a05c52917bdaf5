"""How long a program may be held."""

from math import inf

from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Bound:
    """No bound."""

    def due(self, state: SchedulerState, program: ProgramState) -> float:
        """Return for how many seconds a program may be held in all, before it goes ahead of all
        of its priority that may be held for longer."""
        return inf


class Patience(Bound):
    """A multiple of what programs of its agent take from submission to end; of all agents where
    none of it has ended. A deadline ends it as long before as they take."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def due(self, state: SchedulerState, program: ProgramState) -> float:
        p, graph = self.parameters, state.graph(program.submission.agent)
        usual = state.usual_jct if graph.stats.mean_jct is None else graph.stats.mean_jct
        allowed = p.patience_unknown if usual is None else p.patience * usual
        if program.submission.deadline is not None:
            span = graph.stats.mean_turnaround or 0.0
            allowed = min(
                allowed, max(span, program.submission.deadline - program.submitted_at - span)
            )
        return allowed


__all__ = ["Bound", "Patience"]
