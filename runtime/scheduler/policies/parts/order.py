"""Which program goes first."""

from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Order:
    """Order of arrival: every program costs the same."""

    def cost(self, state: SchedulerState, program: ProgramState) -> float:
        """Return the seconds of the engine that a program's end costs; the least goes first."""
        return 0.0

    def look(self, state: SchedulerState, program: ProgramState) -> int:
        """Return after how many of its calls a new program is held again and ordered by what it
        has shown; 0 for never."""
        return 0


class LeastCost(Order):
    """Least expected seconds of the engine first.

    By what a program declared, while it keeps to that; else by the states of its conversations
    where these have predicted better than service; else by the mean of its agent's programs, which
    a program keeps to its end. Of equals the one with less KV of its own goes first. Where programs
    show on their way how large they are, new ones run until then first (`graph/probe_cost.py`).
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def cost(self, state: SchedulerState, program: ProgramState) -> float:
        return self._plan(state, program)[0]

    def look(self, state: SchedulerState, program: ProgramState) -> int:
        return self._plan(state, program)[1]

    def _plan(self, state: SchedulerState, program: ProgramState) -> tuple[float, int]:
        """Return the cost of a program, and its `look`."""
        graph = state.graph(program.submission.agent)
        whole = self._whole(state, program)
        if program.begun or len(program.conversations) > 1:
            return whole, 0
        declared = program.declared_calls is not None
        look = graph.stats.declared_probe if declared else graph.stats.size_probe
        cost = look.cost(whole if declared else 1.0)
        if cost is None or cost >= self.parameters.worth * whole:
            return whole, 0
        return cost, look.calls

    def _whole(self, state: SchedulerState, program: ProgramState) -> float:
        """Return the cost of running a program to its end."""
        graph = state.graph(program.submission.agent)
        expected = program.declared_calls
        if expected is not None and program.raises <= self.parameters.raises:
            calls = graph.declared.expected(expected)
            if program.steps <= calls:
                return max(1.0, calls - program.steps) * state.step_seconds(graph)
        counted = graph.stats.states_informative or len(program.conversations) > 1
        known = graph.service_left(program.conversation_states) if counted else None
        if known is None:
            known = graph.stats.mean_service
        return known or 0.0


__all__ = ["LeastCost", "Order"]
