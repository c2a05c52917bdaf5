"""What the scheduler knows: programs, their conversations, engines, hosts and graphs."""

from dataclasses import dataclass, field

from drawloom.cost import CostModel
from drawloom.events import HostState, ProgramSubmitted
from drawloom.graph.execution import START, ExecutionGraph


@dataclass(slots=True)
class Lineage:
    """A conversation. `waiting` names the tools it waits for, `since` when it began to."""

    id: str
    engine: str
    state: str = START
    context: int = 0
    waiting: str | None = None
    since: float = 0.0


@dataclass(slots=True)
class Program:
    """A program from submission to end."""

    about: ProgramSubmitted
    index: int
    submitted: float
    admitted: bool = False
    peak: int = 0
    lineages: dict[str, Lineage] = field(default_factory=dict)
    envs: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        return self.about.program

    @property
    def context(self) -> int:
        """Tokens of all its live conversations."""
        return sum(lineage.context for lineage in self.lineages.values())

    def lacks(self, env: str) -> bool:
        """Whether it may still ask for an environment of this key."""
        return env in self.about.envs and env not in self.envs


@dataclass(slots=True)
class World:
    """Kept by the core, read by policies."""

    programs: dict[str, Program] = field(default_factory=dict)
    engines: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, HostState] = field(default_factory=dict)
    graphs: dict[str, ExecutionGraph] = field(default_factory=dict)
    cost: CostModel = field(default_factory=CostModel)

    @property
    def capacity(self) -> int:
        """KV tokens of all engines."""
        return sum(self.engines.values())

    def graph(self, agent: str) -> ExecutionGraph:
        return self.graphs.setdefault(agent, ExecutionGraph(agent))

    def held(self) -> list[Program]:
        """Programs that wait for admission, in order of arrival."""
        return [p for p in self.programs.values() if not p.admitted]

    def admitted(self) -> list[Program]:
        return [p for p in self.programs.values() if p.admitted]


__all__ = ["Lineage", "Program", "World"]
