"""How many programs run."""

from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import Program
from drawloom.runtime.scheduler.state import World

_INSTANT = 1e-6  # seconds


class Admission:
    """Everybody runs."""

    def claim(self, world: World, program: Program, look: int) -> int:
        """Return the KV tokens that a program is promised, which runs for `look` calls first."""
        return 0

    def fits(self, world: World, program: Program, look: int) -> bool:
        """Return whether one more program may run."""
        return True

    def adds(self, world: World, program: Program) -> float:
        """Return the share of the engine's time that one more program is expected to take."""
        return 0.0

    def again(self, world: World) -> float | None:
        """Return after how many seconds more programs may run, if nothing else happens."""
        return None

    def overflows(self, world: World) -> bool:
        """Return whether fewer programs should run."""
        return False


class Cap(Admission):
    """So many programs run.

    Args:
        programs: how many.
    """

    def __init__(self, programs: int) -> None:
        self.programs = programs

    def fits(self, world: World, program: Program, look: int) -> bool:
        return len(world.active) < self.programs


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

    def claim(self, world: World, program: Program, look: int) -> int:
        if look:
            return program.own  # it is held again before it has grown
        graph, p = world.graph(program.about.agent), self.parameters
        guess = program.about.expect_tokens or p.guess * world.capacity
        count = graph.programs
        seen = count * (graph.usual_peak or 0)
        return max(program.own, int((p.believed * guess + seen) / (p.believed + count)))

    def fits(self, world: World, program: Program, look: int) -> bool:
        if not world.active:
            return True
        if world.pressed:
            return False  # those that run have no room as it is
        graph = world.graph(program.about.agent)
        if graph.forks and world.calls >= self.parameters.wide:
            return False  # branches share their KV, so memory does not bound their calls
        spread = graph.peak_spread * (len(world.active) + 1) ** 0.5
        margin = graph.shared + self.parameters.deviations * spread
        wanted = world.claimed + self.claim(world, program, look) + margin
        room = (self.parameters.full + self._beyond(world)) * world.capacity
        return wanted <= room or self._pays(world)

    def _pays(self, world: World) -> bool:
        """Return whether the engine has time for one more program beyond memory.

        An idle one has, once it was idle for as long as it takes to compute what the program
        displaces: a moment between two calls is not worth that. Of a busy one nothing is known
        before a call has ended.
        """
        load, busy = world.load, self.parameters.busy
        if _is_idle(world):
            return busy >= 0 and self._left(world) <= 0
        return load.measured and load.with_more(self._again(world)) <= busy

    def adds(self, world: World, program: Program) -> float:
        return world.load.added(self._again(world))

    def _again(self, world: World) -> float:
        """Return the seconds that are computed again in each cycle for one program more than fit:
        what it brings, somebody else loses, if that was there."""
        if world.host_tokens or not world.active:
            return 0.0
        there = min(1.0, world.capacity / max(1, world.own))
        return there * world.cost.recompute(world.own // len(world.active))

    def again(self, world: World) -> float | None:
        if self.parameters.busy < 0 or not _is_idle(world):
            return None
        return self._left(world) or None

    def _left(self, world: World) -> float:
        """Return for how many seconds more an idle engine is to wait; 0 for next to nothing."""
        left = self._again(world) - world.idle
        return left if left > _INSTANT else 0.0

    def overflows(self, world: World) -> bool:
        beyond = world.own > (1.0 + self._beyond(world)) * world.capacity
        return beyond and world.load.busy > self.parameters.busy

    def _beyond(self, world: World) -> float:
        return self.parameters.beyond if world.host_tokens else 0.0


def _is_idle(world: World) -> bool:
    return not world.computing and not world.starting


__all__ = ["Admission", "Cap", "Throughput"]
