"""Active programs that make no call for long."""

from drawloom.runtime.scheduler.actions import Action, ScheduleTick
from drawloom.runtime.scheduler.lazy_heap import LazyHeap
from drawloom.runtime.scheduler.policy import PauseAfter
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Absences:
    """Find the programs that are to be paused for absence."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._entries = LazyHeap[tuple[float, str]](self._is_current)
        self._tick_at: float | None = None

    def watch(self, program: ProgramState, limit: PauseAfter, now: float) -> list[Action]:
        """Watch an active program without a call, from now on."""
        program.absent_at = now + limit.seconds
        if limit.outlast_leases:
            program.absent_at = max(program.absent_at, program.lease_end)
        self._entries.push((program.absent_at, program.id))
        return self.schedule()

    def is_due(self, now: float) -> bool:
        """Return True, once, when the next program may have been absent for too long."""
        if self._tick_at is None or self._tick_at > now:
            return False
        self._tick_at = None
        return True

    def next_absent(self, now: float) -> ProgramState | None:
        """Return a program that has been absent for too long; the caller pauses it."""
        first = self._entries.top
        return self._state.programs[first[1]] if first is not None and first[0] <= now else None

    def schedule(self) -> list[Action]:
        """Ask for a tick at the time at which the next program will have been absent too long."""
        first = self._entries.top
        if first is None or (self._tick_at is not None and self._tick_at <= first[0]):
            return []
        self._tick_at = first[0]
        return [ScheduleTick(first[0])]

    def _is_current(self, entry: tuple[float, str]) -> bool:
        program = self._state.programs.get(entry[1])
        return program is not None and program.absent_at == entry[0]


__all__ = ["Absences"]
