"""How many programs run."""

from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_INSTANT = 1e-6  # seconds


class Admission:
    """Everybody runs."""

    def reserve(self, state: SchedulerState, program: ProgramState, look: int) -> int:
        """Return the KV tokens that a program is promised, which runs for `look` calls first."""
        return 0

    def fits(self, state: SchedulerState, program: ProgramState, look: int) -> bool:
        """Return whether one more program may run."""
        return True

    def adds(self, state: SchedulerState, program: ProgramState) -> float:
        """Return the share of the engine's time that one more program is expected to take."""
        return 0.0

    def again(self, state: SchedulerState) -> float | None:
        """Return after how many seconds more programs may run, if nothing else happens."""
        return None

    def overflows(self, state: SchedulerState) -> bool:
        """Return whether fewer programs should run."""
        return False


class Cap(Admission):
    """So many programs run.

    Args:
        programs: how many.
    """

    def __init__(self, programs: int) -> None:
        self.programs = programs

    def fits(self, state: SchedulerState, program: ProgramState, look: int) -> bool:
        return len(state.active) < self.programs


class Throughput(Admission):
    """Programs run while their peaks fit into memory, or while the engine has time to spare for
    what is lost when they do not.

    A program holds KV tokens up to its peak, as usual for its agent (Past-Future's idea of
    forecasting the peak, arXiv 2507.10150, over programs). Where the sum does not fit, one more
    program makes others compute about as many tokens again in each of its cycles. That costs
    nothing in time in which the engine would have been idle.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def reserve(self, state: SchedulerState, program: ProgramState, look: int) -> int:
        if look:
            return program.private_tokens  # it is held again before it has grown
        graph, p = state.graph(program.submission.agent), self.parameters
        guess = program.submission.expect_tokens or p.guess * state.capacity
        count = graph.stats.programs
        seen = count * (graph.stats.mean_peak_tokens or 0)
        return max(program.private_tokens, int((p.believed * guess + seen) / (p.believed + count)))

    def fits(self, state: SchedulerState, program: ProgramState, look: int) -> bool:
        if not state.active:
            return True
        if state.preempted_steps:
            return False  # those that run have no room as it is
        graph = state.graph(program.submission.agent)
        if graph.transitions.has_forks and state.running_calls >= self.parameters.wide:
            return False  # branches share their KV, so memory does not bound their calls
        spread = graph.stats.peak_deviation * (len(state.active) + 1) ** 0.5
        margin = graph.shared_tokens + self.parameters.deviations * spread
        wanted = state.reserved_tokens + self.reserve(state, program, look) + margin
        room = (self.parameters.full + self._beyond(state)) * state.capacity
        return wanted <= room or self._pays(state)

    def _pays(self, state: SchedulerState) -> bool:
        """Return whether the engine has time for one more program beyond memory.

        An idle one has, once it was idle for as long as it takes to compute what the program
        displaces: a moment between two calls is not worth that. Of a busy one nothing is known
        before a call has ended.
        """
        load, busy = state.engine_load, self.parameters.busy
        if _is_idle(state):
            return busy >= 0 and self._left(state) <= 0
        return load.measured and load.with_more(self._again(state)) <= busy

    def adds(self, state: SchedulerState, program: ProgramState) -> float:
        return state.engine_load.added(self._again(state))

    def _again(self, state: SchedulerState) -> float:
        """Return the seconds that are computed again in each cycle for one program more than fit:
        what it brings, somebody else loses, if that was there."""
        if state.host_tokens or not state.active:
            return 0.0
        there = min(1.0, state.capacity / max(1, state.private_tokens))
        return there * state.cost.recompute(state.private_tokens // len(state.active))

    def again(self, state: SchedulerState) -> float | None:
        if self.parameters.busy < 0 or not _is_idle(state):
            return None
        return self._left(state) or None

    def _left(self, state: SchedulerState) -> float:
        """Return for how many seconds more an idle engine is to wait; 0 for next to nothing."""
        left = self._again(state) - state.idle_seconds
        return left if left > _INSTANT else 0.0

    def overflows(self, state: SchedulerState) -> bool:
        beyond = state.private_tokens > (1.0 + self._beyond(state)) * state.capacity
        return beyond and state.engine_load.busy > self.parameters.busy

    def _beyond(self, state: SchedulerState) -> float:
        return self.parameters.beyond if state.host_tokens else 0.0


def _is_idle(state: SchedulerState) -> bool:
    return not state.computing_programs and not state.starting_programs


__all__ = ["Admission", "Cap", "Throughput"]
