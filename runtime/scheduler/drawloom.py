"""`drawloom`: programs are admitted, ordered, kept and equipped as units.

Admission: a program runs when its peak KV fits beside those that run (Past-Future's idea of
forecasting the peak from history, arXiv 2507.10150, here over programs) and an environment is
ready for it. Order: the oldest program first, so that what is begun gets finished. Retention: at
a tool boundary its KV is leased for as long as its tools take to return at the 95th percentile
of what was observed (Continuum's idea, arXiv 2511.02230; leases here are soft, so the time to
live bounds waste and cannot block anybody). What ends is dropped at once.
"""

from drawloom.runtime.scheduler.world import Lineage, Program, World

_FULL = 0.95
_GUESS = 0.125
_SLACK = 1.5
_SHORTEST, _LONGEST, _UNKNOWN = 1.0, 60.0, 30.0
_CLASS = 1e9


class DrawloomPolicy:
    name = "drawloom"

    def admit(self, world: World, now: float) -> list[Program]:
        running = world.admitted()
        used = sum(self._claim(world, p) for p in running)
        lacking = {e: sum(p.lacks(e) for p in running) for e in world.hosts}
        chosen: list[Program] = []
        for program in sorted(world.held(), key=_order):
            need = self._claim(world, program)
            if (running or chosen) and used + need > _FULL * world.capacity:
                break
            if not all(self._equipped(world, env, lacking) for env in program.about.envs):
                break
            chosen.append(program)
            used += need
            for env in program.about.envs:
                lacking[env] = lacking.get(env, 0) + 1
        return chosen

    def _claim(self, world: World, program: Program) -> int:
        """The KV tokens that a program will want at its peak."""
        seen = world.graph(program.about.agent).peak_context()
        guess = program.about.expect_tokens or int(_GUESS * world.capacity)
        return max(program.context, seen if seen is not None else guess)

    def _equipped(self, world: World, env: str, lacking: dict[str, int]) -> bool:
        """Whether an environment is ready for one more. Where none can be made, do not wait."""
        host = world.hosts.get(env)
        if host is None:
            return False
        if not host.warm and not host.creating:
            return True
        return host.warm > lacking.get(env, 0)

    def priority(self, world: World, program: Program, now: float) -> float:
        return program.index - _CLASS * program.about.priority

    def retain(
        self, world: World, program: Program, lineage: Lineage, now: float
    ) -> tuple[float, float] | None:
        graph, key = world.graph(program.about.agent), lineage.waiting or ""
        late = graph.durations.quantile(key, 0.95)
        ttl = _UNKNOWN if late is None else min(_LONGEST, max(_SHORTEST, _SLACK * late))
        chance = 0.5 if late is None else graph.durations.chance_within(key, ttl)
        return ttl, chance * world.cost.recompute(lineage.context)

    def evict_at_end(self) -> bool:
        return True

    def claim_early(self) -> bool:
        return True

    def warm(self, world: World, env: str) -> int:
        host = world.hosts.get(env)
        wanted = sum(p.lacks(env) for p in world.programs.values())
        return wanted if host is None else min(host.limit, wanted)


def _order(program: Program) -> tuple[float, float, int]:
    deadline = program.about.deadline
    return -program.about.priority, deadline if deadline is not None else 1e18, program.index


__all__ = ["DrawloomPolicy"]
