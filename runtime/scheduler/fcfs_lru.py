"""`fcfs-lru`: every call on its own, as request-level servers do it.

Calls are served in order of arrival, the prefix cache evicts least recently used blocks, an
environment is made when a call needs it. The baseline (vLLM with automatic prefix caching; the
behaviour that research/scheduling.md §1.7 lists as LRU + prefix).
"""

from drawloom.runtime.scheduler.world import Lineage, Program, World


class FcfsLruPolicy:
    name = "fcfs-lru"

    def admit(self, world: World, now: float) -> list[Program]:
        return world.held()

    def priority(self, world: World, program: Program, now: float) -> float:
        return 0.0

    def retain(
        self, world: World, program: Program, lineage: Lineage, now: float
    ) -> tuple[float, float] | None:
        return None

    def evict_at_end(self) -> bool:
        return False

    def claim_early(self) -> bool:
        return False

    def warm(self, world: World, env: str) -> int:
        return 0


__all__ = ["FcfsLruPolicy"]
