"""Knowledge of agents that a simulated scheduler is given."""

from dataclasses import dataclass

from drawloom.runtime.sim.workload import Job


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Hide from the scheduler what it would not know live.

    Attributes:
        level: ``declared``, ``learned``, ``http`` or ``blind`` (see `Simulation`).
    """

    level: str

    @property
    def declared(self) -> bool:
        """Return True if agents declare how many calls are to come."""
        return self.level == "declared"

    @property
    def forks(self) -> bool:
        """Return True if it is seen which conversation another one was forked from."""
        return self.level != "blind"

    def agent(self, job: Job) -> str:
        """Return the agent that a program is said to be of."""
        return "client" if self.level in ("http", "blind") else job.agent

    def state(self, job: Job, at: int) -> str:
        """Return the graph state of call `at`: its call site, and the tool before it."""
        if self.level == "blind":
            return "llm/"
        before, site = job.base(at), "http" if self.level == "http" else job.calls[at].site
        return f"{site}/{job.calls[before].tool if before >= 0 else ''}"


__all__ = ["Knowledge"]
