"""The execution graph: what programs of one agent do, learned from what they did.

A state is where an LLM call was made and which tool had answered before it: (call site, last
tool) predicts the number of steps left with less than half the error of the kind of step alone
(research/sdk.md §2). Declared edges are priors, observed steps are counts; both feed one
`networkx.DiGraph`.
"""

from collections import deque
from dataclasses import dataclass
from statistics import fmean, pstdev

import networkx as nx
import numpy as np

from drawloom.graph.durations import Durations
from drawloom.graph.forecast import Forecast

START, END = "start", "end"
_PRIOR_WEIGHT = 4.0
_DECAY = 0.995
_MAX_STEPS = 1000.0


@dataclass(frozen=True, slots=True)
class State:
    """A place in an agent: a call site and the tool that answered last."""

    site: str
    tool: str = ""

    def __str__(self) -> str:
        return f"{self.site}/{self.tool}" if self.tool else self.site


class ExecutionGraph:
    """Of one agent. Nodes are `State`s, edges carry `n` (decayed counts) and `p`.

    Attributes:
        shared: tokens that a new program of it finds in the cache.
        usual_peak: the mean of the most KV tokens that finished programs had for themselves.
        peak_spread: the standard deviation of these.
        usual_span: the mean seconds from admission to end.
    """

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.durations = Durations()
        self.contexts: deque[int] = deque(maxlen=128)
        self.services: deque[float] = deque(maxlen=128)
        self.spans: deque[float] = deque(maxlen=128)
        self.usual_peak: int | None = None
        self.peak_spread = 0.0
        self.usual_span: float | None = None
        self._sorted = np.zeros(0)
        self._costs: dict[float, float] = {}
        self.shared = 0
        self._graph: nx.DiGraph[str] = nx.DiGraph()
        self._left: dict[str, float] | None = None
        self.programs = 0

    @property
    def nx(self) -> "nx.DiGraph[str]":
        """The live graph: `n` and `p` on edges, `visits` on nodes. A view; do not change it."""
        return self._graph

    def declare(self, source: str, target: str, p: float) -> None:
        """A prior: from `source` to `target` with probability `p`."""
        edge = self._edge(source, target)
        edge["prior"] = p * _PRIOR_WEIGHT
        self._touch(source)

    def observe(self, source: str, target: str) -> None:
        """A program went from one state to another."""
        for _, _, edge in self._graph.out_edges(source, data=True):
            edge["n"] *= _DECAY
        self._edge(source, target)["n"] += 1.0
        self._touch(source)

    def finished(self, peak_context: int, service: float = 0.0, span: float = 0.0) -> None:
        """A program ended: the most KV tokens that it had for itself, the seconds that its LLM
        calls took, and those from its admission to its end."""
        self.programs += 1
        self.contexts.append(peak_context)
        self.services.append(service)
        self.spans.append(span)
        self.usual_peak, self.peak_spread = int(fmean(self.contexts)), pstdev(self.contexts)
        self.usual_span = fmean(self.spans)
        self._sorted = np.sort(np.array(self.services))
        self._costs.clear()

    def seconds_per_completion(self, attained: float) -> float | None:
        """What a program that has had `attained` seconds costs for each chance of its end: the
        inverse of the Gittins index of the finished programs' services (Gittins 1979; the least
        first is the best order that knows no more than this). None while none has finished."""
        if not self.services:
            return None
        known = self._costs.get(attained)
        if known is None:
            known = self._costs[attained] = self._cost(attained)
        return known

    def _cost(self, attained: float) -> float:
        services = self._sorted
        left = services[np.searchsorted(services, attained, side="right") :] - attained
        if not len(left):
            return max(attained, 1e-3)
        done = np.arange(1, len(left) + 1)
        spent = np.cumsum(left) + (len(left) - done) * left  # by all, when so many are done
        return float(np.min(np.maximum(spent, 1e-9) / done))

    def following(self, state: str) -> dict[str, float]:
        """The probability of each next state."""
        if state not in self._graph:
            return {}
        return {t: d["p"] for _, t, d in self._graph.out_edges(state, data=True)}

    def steps_left(self, state: str) -> float | None:
        """LLM calls until the end, this state's own included; None when nothing is known.

        Expected visits of the absorbing chain, ``(I - Q)^-1 1``.
        """
        if self._left is None:
            self._left = self._solve()
        return self._left.get(state)

    def forecast(self, state: str, tool: str) -> Forecast:
        """What to expect of a program that waits for `tool` in `state`."""
        return Forecast(
            tool=tool,
            next=self.following(state),
            seconds_p50=self.durations.quantile(tool, 0.5),
            seconds_p95=self.durations.quantile(tool, 0.95),
            steps_left=self.steps_left(state),
        )

    def _edge(self, source: str, target: str) -> dict[str, float]:
        if not self._graph.has_edge(source, target):
            self._graph.add_edge(source, target, n=0.0, prior=0.0, p=0.0)
        edge: dict[str, float] = self._graph.edges[source, target]
        return edge

    def _touch(self, source: str) -> None:
        edges = [d for _, _, d in self._graph.out_edges(source, data=True)]
        total = sum(d["n"] + d["prior"] for d in edges)
        for edge in edges:
            edge["p"] = (edge["n"] + edge["prior"]) / total if total else 0.0
        self._left = None

    def _solve(self) -> dict[str, float]:
        states = [s for s in self._graph if s != END and self._graph.out_degree(s)]
        place = {s: i for i, s in enumerate(states)}
        matrix = np.eye(len(states))
        for source, target, edge in self._graph.edges(data=True):
            if source in place and target in place:
                matrix[place[source], place[target]] -= edge["p"]
        costs = np.array([0.0 if s == START else 1.0 for s in states])
        try:
            left = np.linalg.solve(matrix, costs)
        except np.linalg.LinAlgError:  # no way out has been seen yet
            return {}
        return {s: float(min(_MAX_STEPS, max(1.0, left[i]))) for s, i in place.items()}


__all__ = ["END", "START", "ExecutionGraph", "State"]
