"""What knowing the future would give: references, not policies that anybody can run.

`Clairvoyant` bounds what a better order can win: it runs the program with the least work left
first, with every program's true work and true largest context, under the same memory, engine and
admission to it. It does not bound what a better engine, or preemption inside a call, could win,
and as non-preemptive packing it is no proof of an optimum.
"""

from collections.abc import Iterator, Sequence

from drawloom.cost import CostModel
from drawloom.events import StepReady
from drawloom.runtime.scheduler.policy import Keep, Policy, Retention
from drawloom.runtime.scheduler.world import Lineage, Program, Rank, World
from drawloom.runtime.sim.workload import Job

_FULL, _LEASE = 0.95, 600.0


class Clairvoyant(Policy):
    name = "clairvoyant"
    spill = True
    evict_at_end = True

    def __init__(self, jobs: Sequence[Job], cost: CostModel) -> None:
        self._left = {job.id: work_left(job, cost) for job in jobs}
        self._jobs = {job.id: job for job in jobs}

    def _work(self, program: Program) -> float:
        left = self._left[program.id]
        return left[min(program.steps, len(left) - 1)]

    def order(self, program: Program) -> Rank:
        return (self._work(program),)

    def rank(self, world: World, program: Program) -> Rank:
        return (self._work(program),)

    def admit(self, world: World, now: float) -> Iterator[Program]:
        while (program := world.first) is not None:
            need = self.claim(world, program)
            if world.active and world.claimed + need > _FULL * world.capacity:
                return
            yield program

    def claim(self, world: World, program: Program) -> int:
        return self._jobs[program.id].peak

    def priority(self, world: World, program: Program, step: StepReady, now: float) -> float:
        return self._work(program)

    def retain(self, world: World, program: Program, lineage: Lineage, now: float) -> Retention:
        return Keep(_LEASE, lineage.context)


def work_left(job: Job, cost: CostModel) -> list[float]:
    """Seconds of the engine that a program still wants before each of its calls, were it alone."""
    left, total = [], 0.0
    for at in range(len(job.calls) - 1, -1, -1):
        call, base = job.calls[at], job.base(at)
        cached = min(call.reuse, job.calls[base].context if base >= 0 else 0)
        new = call.prompt - cached
        total += cost.prefill * new + cost.prefill_cached * new * (cached + new / 2)
        total += call.output * cost.decode(1, call.prompt + call.output // 2)
        left.append(total)
    return left[::-1]


__all__ = ["Clairvoyant", "work_left"]
