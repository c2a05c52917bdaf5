"""Execution graphs of agents, a bounded number of them."""

from drawloom.graph.execution_graph import ExecutionGraph

_MOST = 2_000


class AgentGraphs(dict[str, ExecutionGraph]):
    """Map agents to their execution graphs; a new agent gets an empty one.

    Beyond `most` agents, those whose last program ended longest ago are forgotten; never one that
    has programs.
    """

    def __init__(self, most: int = _MOST) -> None:
        super().__init__()
        self._most = most
        self._programs: dict[str, int] = {}
        self._idle: dict[str, None] = {}
        self._step_seconds: dict[str, float] = {}
        self._sum = 0.0

    def __setitem__(self, agent: str, graph: ExecutionGraph) -> None:
        super().__setitem__(agent, graph)
        if agent not in self._programs:
            self._add_idle(agent)
        self.learned(graph)

    def __missing__(self, agent: str) -> ExecutionGraph:
        self[agent] = graph = ExecutionGraph(agent)
        return graph

    def enter(self, agent: str) -> None:
        """Count a new program of an agent."""
        self._programs[agent] = self._programs.get(agent, 0) + 1
        self._idle.pop(agent, None)

    def leave(self, agent: str) -> None:
        """Count the end of a program."""
        self._programs[agent] -= 1
        if not self._programs[agent]:
            del self._programs[agent]
            if agent in self:
                self._add_idle(agent)

    def _add_idle(self, agent: str) -> None:
        """Note that an agent has no program any more, and forget the longest idle ones."""
        self._idle.pop(agent, None)
        self._idle[agent] = None
        while len(self) > self._most and len(self._idle) > 1:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            del self[oldest]
            self._set_step_seconds(oldest, 0.0)

    def learned(self, graph: ExecutionGraph) -> None:
        """Update the mean over agents after a graph has learned."""
        if graph.agent in self:
            self._set_step_seconds(graph.agent, graph.stats.step_seconds)

    def _set_step_seconds(self, agent: str, seconds: float) -> None:
        self._sum += seconds - self._step_seconds.pop(agent, 0.0)
        if seconds:
            self._step_seconds[agent] = seconds

    @property
    def step_seconds(self) -> float | None:
        """Return the mean over agents of the seconds of an LLM call; None when nothing is known."""
        return self._sum / len(self._step_seconds) if self._step_seconds else None


__all__ = ["AgentGraphs"]
