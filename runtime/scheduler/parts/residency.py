"""How long KV and places are kept while programs wait."""

from math import inf

from drawloom.runtime.scheduler.parts.parameters import Parameters
from drawloom.runtime.scheduler.policy import Demote, Keep, Retention
from drawloom.runtime.scheduler.program import Lineage, Program
from drawloom.runtime.scheduler.world import World


class Residency:
    """Nothing is kept but by the cache's own least-recently-used rule."""

    def retain(self, world: World, program: Program, lineage: Lineage) -> Retention:
        """Return what happens to a conversation's KV when a call has ended."""
        return None

    def paused(self, world: World) -> Retention:
        """Return what happens to the KV of a program that was paused."""
        return None

    def absent(self, world: World, program: Program, tools: str | None) -> float | None:
        """Return after how many seconds without a call a program gives up its place, whose last
        call asked for `tools`; None if that is not known."""
        return None


class Leases(Residency):
    """KV is leased for as long as tools take to return, at the 95th percentile of what was seen
    (Continuum's idea, arXiv 2511.02230; leases here are soft, so the time to live bounds waste and
    blocks nobody). A program gives up its place that has been waiting for tools for some leases, or
    to be gone on with for longer than that is worth (Gray and Putzolu's five-minute rule, 1987)."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def retain(self, world: World, program: Program, lineage: Lineage) -> Retention:
        durations = world.graph(program.about.agent).durations
        late = durations.quantile(lineage.waiting or "", 0.95)
        ttl = self._ttl(late)
        chance = 0.5 if late is None else durations.chance_within(lineage.waiting or "", ttl)
        if not lineage.waiting:
            ttl = min(ttl, self._worth(world, program))
        return Keep(ttl, chance * world.cost.recompute(lineage.context))

    def paused(self, world: World) -> Retention:
        return Demote() if world.host_tokens else None

    def absent(self, world: World, program: Program, tools: str | None) -> float | None:
        durations = world.graph(program.about.agent).durations
        late = None if tools is None else durations.quantile(tools, 0.95)
        longest = self.parameters.absent * self._ttl(late)
        return longest if tools else min(longest, self._worth(world, program))

    def _ttl(self, late: float | None) -> float:
        p = self.parameters
        return p.unknown if late is None else min(p.longest, max(p.shortest, p.slack * late))

    def _worth(self, world: World, program: Program) -> float:
        """Return for how many seconds the memory of a program is worth keeping that answered, and
        may never be gone on with. To keep it costs what the engine could do with it meanwhile, to
        lose it what it takes to compute it again: even after as long as all memory would take."""
        if not program.own:
            return inf
        whole = world.cost.recompute(program.own) * world.capacity / program.own
        return world.graph(program.about.agent).chance_of_return * whole


__all__ = ["Leases", "Residency"]
