"""`thunder`, `thunder-decay`: ThunderAgent's program-aware pause and resume (arXiv 2602.13692).

Faithful to the code at a7eef77 (research/thunderagent.md §1), its quirks included: a clock of
5 s; 100 tokens of slack for each program; the smallest programs are paused first, at a tool
boundary or marked for the next one, and while anything overflows every one that computes is
marked; resumed by smallest first, those that wait with a call, then new ones, then idle ones;
forced after 1,800 s. A new program goes straight in while nobody waits. With decay, an idle
program's tokens count 2^-t on resume after t seconds. Pausing does nothing to the KV.
"""

from collections.abc import Iterator

from drawloom.runtime.scheduler.policy import Policy
from drawloom.runtime.scheduler.program import Program
from drawloom.runtime.scheduler.world import World

_TICK, _SLACK, _PATIENCE = 5.0, 100, 1800.0


class Thunder(Policy):
    name = "thunder"
    spill = True
    period = _TICK
    decay = False

    def _remaining(self, world: World, now: float, decay: bool = False) -> float:
        used = 0.0
        for program in world.active.values():
            idle = now - program.since if decay and program.acting else 0.0
            used += program.tokens * 2.0**-idle + _SLACK
        return world.capacity - used

    def pause(self, world: World, now: float) -> Iterator[Program]:
        for program in [p for p in world.active.values() if p.marked and p.acting]:
            yield program
        if world.ticked != now:
            return
        room = self._remaining(world, now)
        for program in sorted(world.active.values(), key=_smallest):
            if room >= 0:
                return
            if program.acting:
                room += program.tokens + _SLACK
                yield program
            else:
                program.marked = True  # frees nothing yet, so all of them get marked

    def admit(self, world: World, now: float) -> Iterator[Program]:
        if world.ticked != now:
            first = world.held.first
            if first is None or not first.ready or first.begun or self._crowd(world):
                return
            if self._remaining(world, now) >= first.tokens + _SLACK:
                yield first
            return
        room = self._remaining(world, now, self.decay)
        for program in sorted(world.held.ranked(), key=_turn):
            late = bool(program.ready) and now - program.since >= _PATIENCE
            room -= program.tokens + _SLACK
            if room < 0 and not late:
                return
            yield program

    def takes(self, world: World, program: Program) -> bool:
        """New ones go straight in; who is paused waits for the clock."""
        room = self._remaining(world, world.ticked) >= program.tokens + _SLACK
        return room and bool(program.ready) and not program.begun

    def _crowd(self, world: World) -> bool:
        """Whether more than one program is held."""
        return len(world.programs) - len(world.active) > 1


class ThunderDecay(Thunder):
    name = "thunder-decay"
    decay = True


def _smallest(program: Program) -> tuple[bool, int, int]:
    return not program.acting, program.tokens, program.index


def _turn(program: Program) -> tuple[int, int, int]:
    kind = 0 if program.ready and program.begun else 1 if not program.begun else 2
    return kind, program.tokens, program.index


__all__ = ["Thunder", "ThunderDecay"]
