"""What is known of agents, of no more of them than are worth remembering."""

from drawloom.graph.execution_graph import ExecutionGraph

_REMEMBERED = 2_000


class Agents(dict[str, ExecutionGraph]):
    """Execution graphs by agent. Beyond `most` agents, those whose last program ended longest ago
    are forgotten; never one that has live programs."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        super().__init__()
        self._most = most
        self._live: dict[str, int] = {}
        self._idle: dict[str, None] = {}
        self._seconds: dict[str, float] = {}
        self._sum = 0.0

    def __setitem__(self, agent: str, graph: ExecutionGraph) -> None:
        super().__setitem__(agent, graph)
        if agent not in self._live:
            self._rest(agent)
        self.learned(graph)

    def __missing__(self, agent: str) -> ExecutionGraph:
        self[agent] = graph = ExecutionGraph(agent)
        return graph

    def enter(self, agent: str) -> None:
        """Count a new program of an agent."""
        self._live[agent] = self._live.get(agent, 0) + 1
        self._idle.pop(agent, None)

    def leave(self, agent: str) -> None:
        """Count the end of one."""
        self._live[agent] -= 1
        if not self._live[agent]:
            del self._live[agent]
            if agent in self:
                self._rest(agent)

    def _rest(self, agent: str) -> None:
        self._idle.pop(agent, None)
        self._idle[agent] = None
        while len(self) > self._most and len(self._idle) > 1:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            del self[oldest]
            self._count(oldest, 0.0)

    def learned(self, graph: ExecutionGraph) -> None:
        """Note that a graph may have other seconds for a call than before."""
        if graph.agent in self:
            self._count(graph.agent, graph.stats.step_seconds)

    def _count(self, agent: str, seconds: float) -> None:
        self._sum += seconds - self._seconds.pop(agent, 0.0)
        if seconds:
            self._seconds[agent] = seconds

    @property
    def step_seconds(self) -> float | None:
        """The mean over agents of the seconds of an LLM call; None when nothing is known."""
        return self._sum / len(self._seconds) if self._seconds else None


__all__ = ["Agents"]
