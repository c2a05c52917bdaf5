"""`cap-order:N`: at most N programs at a time in `drawloom`'s order, at admission and at the
engine, and nothing else of it: what its order alone is worth, with the best number known
beforehand."""

from collections.abc import Iterator

from drawloom.events import StepReady
from drawloom.runtime.scheduler.drawloom import Drawloom
from drawloom.runtime.scheduler.policy import Retention
from drawloom.runtime.scheduler.program import Lineage, Program
from drawloom.runtime.scheduler.world import World


class CapOrder(Drawloom):
    name = "cap-order"

    def __init__(self, programs: float = 16) -> None:
        if programs < 1:
            raise ValueError(programs)
        self.programs = int(programs)
        self.name = f"cap-order:{self.programs}"

    def admit(self, world: World, now: float) -> Iterator[Program]:
        while len(world.active) < self.programs and (program := world.held.first) is not None:
            yield program

    def takes(self, world: World, program: Program) -> bool:
        return len(world.active) < self.programs

    def pause(self, world: World, now: float) -> Iterator[Program]:
        return iter(())

    def claim(self, world: World, program: Program) -> int:
        return 0

    def retain(self, world: World, program: Program, lineage: Lineage, now: float) -> Retention:
        return None

    def priority(self, world: World, program: Program, step: StepReady, now: float) -> float:
        return self._cost(world, program)


__all__ = ["CapOrder"]
