"""What a policy decides, and the policies by name.

The core keeps the books and asks; a policy answers from the world and the time, and keeps no
books of its own. Each is one small class on one page.
"""

from collections.abc import Callable
from typing import Protocol

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler.world import Lineage, Program, World


class Policy(Protocol):
    name: str

    def admit(self, world: World, now: float) -> list[Program]:
        """Which of the held programs may run now, in order."""
        ...

    def priority(self, world: World, program: Program, now: float) -> float:
        """Of a program's LLM calls; lower goes first."""
        ...

    def retain(
        self, world: World, program: Program, lineage: Lineage, now: float
    ) -> tuple[float, float] | None:
        """At the end of an LLM call: time to live and value of its KV, or None for no lease."""
        ...

    def evict_at_end(self) -> bool:
        """Whether the KV of what has ended is freed at once."""
        ...

    def claim_early(self) -> bool:
        """Whether an environment is claimed when a tool's name is decoded."""
        ...

    def warm(self, world: World, env: str) -> int:
        """How many environments of a key to keep ready, beside those in use."""
        ...


def _makers() -> dict[str, Callable[[], Policy]]:
    from drawloom.runtime.scheduler.drawloom import DrawloomPolicy
    from drawloom.runtime.scheduler.fcfs_lru import FcfsLruPolicy

    return {"drawloom": DrawloomPolicy, "fcfs-lru": FcfsLruPolicy}


def policy_names() -> list[str]:
    return sorted(_makers())


def make_policy(name: str) -> Policy:
    """A policy by its name. Raises `ConfigError` with the known names."""
    maker = _makers().get(name)
    if maker is None:
        raise ConfigError(
            f"policy {name!r} is not known; choose one of {', '.join(policy_names())}"
        )
    return maker()


__all__ = ["Policy", "make_policy", "policy_names"]
