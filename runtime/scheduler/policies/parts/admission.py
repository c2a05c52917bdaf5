"""Number of programs that run."""

from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_INSTANT = 1e-6  # seconds


class Admission:
    """Let every program run (null object)."""

    def reserve(self, state: SchedulerState, program: ProgramState, probation_calls: int) -> int:
        """Return the KV tokens that a program is promised.

        Args:
            state: the scheduler's.
            program: any.
            probation_calls: calls after which it is held again; 0 is never.
        """
        return 0

    def fits(self, state: SchedulerState, program: ProgramState, probation_calls: int) -> bool:
        """Return True if one more program may run (arguments as in `reserve`)."""
        return True

    def added_load(self, state: SchedulerState, program: ProgramState) -> float:
        """Return the share of the engine's time that one more program is expected to take."""
        return 0.0

    def recheck_after(self, state: SchedulerState) -> float | None:
        """Return the seconds after which more programs may fit though nothing else happens."""
        return None

    def overflows(self, state: SchedulerState) -> bool:
        """Return True if fewer programs should run."""
        return False


class Cap(Admission):
    """Let a fixed number of programs run.

    Args:
        programs: how many.
    """

    def __init__(self, programs: int) -> None:
        self.programs = programs

    def fits(self, state: SchedulerState, program: ProgramState, probation_calls: int) -> bool:
        return len(state.active) < self.programs


class Throughput(Admission):
    """Let programs run while their peaks fit into memory, or the engine has time to spare.

    A program holds KV tokens up to its peak, as usual for its agent (Past-Future's idea of
    forecasting the peak, arXiv 2507.10150, over programs). Where the sum of peaks does not fit, one
    more program makes others recompute about as many tokens in each of its cycles. That costs
    nothing in time in which the engine would have been idle.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def reserve(self, state: SchedulerState, program: ProgramState, probation_calls: int) -> int:
        if probation_calls:
            return program.private_tokens  # it is held again before it has grown
        stats, p = state.graph(program.submission.agent).stats, self.parameters
        guess = program.submission.expect_tokens or p.guess * state.capacity
        count = stats.programs
        observed = count * (stats.mean_peak_tokens or 0)
        peak = int((p.believed * guess + observed) / (p.believed + count))
        return max(program.private_tokens, peak)

    def fits(self, state: SchedulerState, program: ProgramState, probation_calls: int) -> bool:
        if not state.active:
            return True
        if state.preempted_steps:
            return False  # the active ones have too little memory already
        graph = state.graph(program.submission.agent)
        if graph.transitions.has_forks and state.totals.running_calls >= self.parameters.wide:
            return False  # branches share their KV, so memory does not bound their calls
        deviation = graph.stats.peak_deviation * (len(state.active) + 1) ** 0.5
        margin = graph.shared_tokens + self.parameters.deviations * deviation
        reserved = state.totals.reserved_tokens
        wanted = reserved + self.reserve(state, program, probation_calls) + margin
        room = (self.parameters.full + self._beyond(state)) * state.capacity
        return wanted <= room or self._has_time(state)

    def _has_time(self, state: SchedulerState) -> bool:
        """Return True if the engine has time for one more program beyond memory.

        An idle engine has, once it was idle for as long as it takes to recompute what the program
        displaces: a moment between two calls is not worth that. Of a busy one nothing is known
        before a call has ended.
        """
        load, busy = state.engine_load, self.parameters.busy
        if _is_idle(state):
            return busy >= 0 and self._idle_seconds_missing(state) <= 0
        return load.measured and load.with_more(self._recompute(state)) <= busy

    def added_load(self, state: SchedulerState, program: ProgramState) -> float:
        return state.engine_load.added(self._recompute(state))

    def _recompute(self, state: SchedulerState) -> float:
        """Return the seconds of recomputation in each cycle that one more program causes.

        It displaces as much of others' KV as it brings, as far as that was there.
        """
        if state.host_tokens or not state.active:
            return 0.0
        there = min(1.0, state.capacity / max(1, state.totals.private_tokens))
        return there * state.cost.recompute(state.totals.private_tokens // len(state.active))

    def recheck_after(self, state: SchedulerState) -> float | None:
        if self.parameters.busy < 0 or not _is_idle(state):
            return None
        return self._idle_seconds_missing(state) or None

    def _idle_seconds_missing(self, state: SchedulerState) -> float:
        """Return for how many seconds more an idle engine is to wait; 0 for next to nothing."""
        left = self._recompute(state) - state.idle_seconds
        return left if left > _INSTANT else 0.0

    def overflows(self, state: SchedulerState) -> bool:
        room = (1.0 + self._beyond(state)) * state.capacity
        return state.totals.private_tokens > room and state.engine_load.busy > self.parameters.busy

    def _beyond(self, state: SchedulerState) -> float:
        return self.parameters.beyond if state.host_tokens else 0.0


def _is_idle(state: SchedulerState) -> bool:
    return not state.totals.computing_programs and not state.totals.starting_programs


__all__ = ["Admission", "Cap", "Throughput"]
