"""`thunder`, `thunder-decay`, `thunder-dynamo`: ThunderAgent's program-aware pause and resume
(arXiv 2602.13692).

Faithful to the code at a7eef77, its quirks included: a clock of 5 s; 100 tokens of slack for each
program; on each tick programs are resumed first, smallest first, those that wait with a call, then
new ones, then idle ones, passing over programs that do not fit; then, while anything overflows, the
smallest are paused at a tool boundary or marked for the next one, and every one that computes is
marked. Forced after 1,800 s. A new program goes straight in while none waits. With decay, an idle
program's tokens count 2^-t on resume after t seconds. Pausing does nothing to the KV.

`thunder-dynamo` is what NVIDIA Dynamo deploys: host memory is in its budget (an argument says how
much of it, as in ``thunder-dynamo:0.25``); use may come to 0.95 of that, is then brought down to
0.80, and programs are resumed up to 0.10 below the threshold; a clock of 1 s.
"""

from collections.abc import Iterator

from drawloom.runtime.scheduler.policy import Grant, Policy
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_PERIOD, _SLACK, _PATIENCE = 5.0, 100, 1800.0


class Thunder(Policy):
    """Pause and resume programs on a clock, so that their contexts fit into memory.

    This policy marks programs (`pause_pending`), as the original does: asking it is not free of
    effects.
    """

    name = "thunder"
    spill = True
    tick_seconds = _PERIOD
    decay = False
    threshold = target = resume = 1.0

    def __init__(self) -> None:
        self._last_tick, self._resumed = -1.0, list[ProgramState]()

    def _budget(self, state: SchedulerState) -> float:
        return state.capacity

    def _used(self, state: SchedulerState, now: float, decay: bool = False) -> float:
        used = 0.0
        for program in state.active.values():
            idle = now - program.last_call_end if decay and program.at_tool_boundary else 0.0
            used += program.tokens * 2.0**-idle + _SLACK
        return used

    def pause(self, state: SchedulerState, now: float) -> Iterator[ProgramState]:
        marked = [p for p in state.active.values() if p.pause_pending and p.at_tool_boundary]
        yield from marked
        if state.last_tick != now or self._last_tick == now:
            return
        self._last_tick, self._resumed = now, self._choose(state, now)
        used = self._used(state, now) + sum(p.tokens + _SLACK for p in self._resumed)
        if used <= self.threshold * self._budget(state):
            return
        for program in sorted(state.active.values(), key=_smallest):
            if used <= self.target * self._budget(state):
                return
            if program.at_tool_boundary:
                used -= program.tokens + _SLACK
                yield program
            else:
                program.pause_pending = True  # frees nothing yet, so all of them get marked

    def admit(self, state: SchedulerState, now: float) -> Iterator[Grant]:
        if self._resumed:
            resumed, self._resumed = self._resumed, []
            for program in resumed:
                yield self.grant(state, program)
        first = state.wait_queue.first
        if first is None or not first.pending_steps or first.was_admitted or _crowded(state):
            return
        if self._room(state, now) >= first.tokens + _SLACK:
            yield self.grant(state, first)

    def _choose(self, state: SchedulerState, now: float) -> list[ProgramState]:
        """Return the programs that a tick resumes."""
        room, found = self._room(state, now, self.decay), list[ProgramState]()
        for program in sorted(state.wait_queue.ranked(), key=_turn):
            late = bool(program.pending_steps) and now - program.waiting_since >= _PATIENCE
            need = program.tokens + _SLACK
            if need <= room or late:
                room -= need
                found.append(program)
        return found

    def _room(self, state: SchedulerState, now: float, decay: bool = False) -> float:
        return self.resume * self._budget(state) - self._used(state, now, decay)

    def would_admit(self, state: SchedulerState, program: ProgramState) -> bool:
        """Return True for a new program that fits; paused ones wait for the clock."""
        room = self._room(state, state.last_tick) >= program.tokens + _SLACK
        return room and bool(program.pending_steps) and not program.was_admitted


class ThunderDecay(Thunder):
    """Count an idle program's tokens for less the longer it is idle."""

    name = "thunder-decay"
    decay = True


class ThunderDynamo(Thunder):
    """Count host memory in the budget, with hysteresis.

    Args:
        host: share of host memory that is counted.
    """

    name = "thunder-dynamo"
    tick_seconds = 1.0
    threshold, target, resume = 0.95, 0.80, 0.85

    def __init__(self, host: float = 1.0) -> None:
        super().__init__()
        if not 0 <= host <= 1:
            raise ValueError(host)
        self._host = host
        if host != 1.0:
            self.name = f"thunder-dynamo:{host:g}"

    def _budget(self, state: SchedulerState) -> float:
        return state.capacity + self._host * state.host_tokens


def _crowded(state: SchedulerState) -> bool:
    """Return True if more than one program waits."""
    return len(state.programs) - len(state.active) > 1


def _smallest(program: ProgramState) -> tuple[bool, int, int]:
    return not program.at_tool_boundary, program.tokens, program.index


def _turn(program: ProgramState) -> tuple[int, int, int]:
    resumed = program.pending_steps and program.was_admitted
    kind = 0 if resumed else 1 if not program.was_admitted else 2
    return kind, program.tokens, program.index


__all__ = ["Thunder", "ThunderDecay", "ThunderDynamo"]
