"""Order of programs."""

from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Order:
    """Order programs by arrival: all cost the same (null object)."""

    def cost(self, state: SchedulerState, program: ProgramState) -> float:
        """Return the engine seconds for each program that ends; the least goes first."""
        return 0.0

    def probation_calls(self, state: SchedulerState, program: ProgramState) -> int:
        """Return the calls after which a new program is held and ordered again; 0 is never."""
        return 0


class LeastCost(Order):
    """Order programs by expected engine seconds.

    These follow from what a program declared, while it keeps to that; else from the states of its
    conversations, where these have predicted better than service; else from the mean of its agent's
    programs, which a program keeps to its end. Of equal ones, the program with fewer private tokens
    goes first. Where programs reveal their size on their way, new ones are probed first
    (`graph/probe_cost.py`).
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def cost(self, state: SchedulerState, program: ProgramState) -> float:
        return self._plan(state, program)[0]

    def probation_calls(self, state: SchedulerState, program: ProgramState) -> int:
        return self._plan(state, program)[1]

    def _plan(self, state: SchedulerState, program: ProgramState) -> tuple[float, int]:
        """Return the cost of a program, and its probation calls."""
        stats = state.graph(program.submission.agent).stats
        whole = self._whole(state, program)
        if program.was_admitted or len(program.conversations) > 1:
            return whole, 0
        declared = program.declared_calls is not None
        probe = stats.declared_probe if declared else stats.size_probe
        cost = probe.cost(whole if declared else 1.0)
        if cost is None or cost >= self.parameters.worth * whole:
            return whole, 0
        return cost, probe.calls

    def _whole(self, state: SchedulerState, program: ProgramState) -> float:
        """Return the cost of running a program to its end."""
        graph = state.graph(program.submission.agent)
        declared = program.declared_calls
        if declared is not None and program.declaration_raises <= self.parameters.raises:
            calls = graph.declared.expected(declared)
            if program.steps <= calls:
                return max(1.0, calls - program.steps) * state.step_seconds(graph)
        by_states = graph.stats.states_informative or len(program.conversations) > 1
        known = graph.service_left(program.positions) if by_states else None
        if known is None:
            known = graph.stats.mean_service
        return known or 0.0


__all__ = ["LeastCost", "Order"]
