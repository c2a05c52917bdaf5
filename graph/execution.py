"""The execution graph: what programs of one agent do, learned from what they did.

A state is where an LLM call was made and which tool had answered before it: (call site, last
tool) predicts the number of steps left with less than half the error of the kind of step alone
(research/sdk.md §2). Declared edges are priors, observed steps are counts; both feed one
`networkx.DiGraph`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

import networkx as nx
import numpy as np

from drawloom.graph.calibration import Calibration
from drawloom.graph.durations import Durations
from drawloom.graph.forecast import Forecast
from drawloom.graph.look import Look
from drawloom.graph.record import Record

START, END, FORK = "start", "end", "fork:"
_ENOUGH, _BETTER = 8, 0.9
_SAVED: dict[str, Callable[[Any], Any]] = {
    "shared": int, "step_seconds": float, "informed": bool, "programs": int
}  # fmt: skip
_PRIOR_WEIGHT = 4.0
_DECAY = 0.995
_LEARN = 0.05
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
        usual_jct: the mean seconds from submission to end; None before any.
        step_seconds: the mean seconds of service of an LLM call.
        sizes: LLM calls, peak and seconds of service of finished programs.
        look: when programs with branches showed how many; sizes are seconds of service.
        told: when declared ones said anew how large they are; sizes are shares of what they had
            said at first.
        declared: how programs kept to what they declared.
        informed: whether the states predicted what finished programs still needed better than
            the service that they had had.
    """

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.durations = Durations()
        self.contexts: deque[int] = deque(maxlen=128)
        self.services: deque[float] = deque(maxlen=128)
        self.spans: deque[float] = deque(maxlen=128)
        self.sizes: deque[tuple[int, int, float]] = deque(maxlen=128)
        self.look, self.told, self.declared = Look(), Look(), Record()
        self.usual_peak: int | None = None
        self.peak_spread = 0.0
        self.usual_span: float | None = None
        self.usual_jct: float | None = None
        self._sorted = np.zeros(0)
        self._costs: dict[float, float] = {}
        self.shared = 0
        self._graph: nx.DiGraph[str] = nx.DiGraph()
        self._left: dict[str, float] = {}
        self._changes = 0
        self._solved_at = -1
        self._visits: dict[str, float] = {}
        self._forks: dict[str, float] = {}
        self.step_seconds = 0.0
        self.informed = False
        self._errors = [0.0, 0.0]
        self.calibrations: dict[str, Calibration] = {}
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
        self._visits[source] = self._visits.get(source, 0.0) + 1.0
        self._touch(source)

    def forked(self, state: str) -> str:
        """A conversation in `state` was forked; the state in which the branch begins."""
        branch = f"{FORK}{state}"
        self._forks[state] = self._forks.get(state, 0.0) + 1.0
        self._edge(state, branch)
        self._changes += 1
        return branch

    def finished(
        self,
        peak_context: int,
        service: float = 0.0,
        span: float = 0.0,
        steps: int = 0,
        trail: Sequence[tuple[float, float]] = (),
        shown: tuple[int, float] | None = None,
        outgrew: float | None = None,
    ) -> None:
        """A program ended: the most KV tokens that it had for itself, the seconds that its LLM
        calls took, those from its admission to its end, how many calls there were, at the end of
        each the service so far and what was then expected to follow, the calls and service after
        which it had shown how large it is, and how many times the calls that it declared at first
        it declared last."""
        self._judge(service, trail)
        self.programs += 1
        self.contexts.append(peak_context)
        self.services.append(service)
        self.spans.append(span)
        if steps:
            self.sizes.append((steps, peak_context, service))
        calls, had = shown or (0, service)
        self.look.observe(calls, had, service)
        if outgrew is not None:
            self.told.observe(calls, had, outgrew)
        self._summarise()

    def took(self, jct: float) -> None:
        """A program ended so many seconds after its submission."""
        usual = jct if self.usual_jct is None else self.usual_jct
        self.usual_jct = usual + _LEARN * (jct - usual)

    def _summarise(self) -> None:
        self.usual_peak, self.peak_spread = int(fmean(self.contexts)), pstdev(self.contexts)
        self.usual_span = fmean(self.spans)
        if calls := sum(steps for steps, _, _ in self.sizes):
            self.step_seconds = sum(service for _, _, service in self.sizes) / calls
        self._sorted = np.sort(np.array(self.services))
        self._costs.clear()

    def _judge(self, service: float, trail: Sequence[tuple[float, float]]) -> None:
        """Which would have known better what was still to come: the states, or the mean of those
        that had come as far?"""
        for had, expected in trail[:-1]:
            left = service - had
            others = self._sorted[np.searchsorted(self._sorted, had, side="right") :]
            if not len(others):
                continue
            by_service = float(others.mean()) - had
            for at, guess in enumerate((expected, by_service)):
                self._errors[at] = _DECAY * self._errors[at] + abs(guess - left)
        by_state, by_had = self._errors
        self.informed = self.programs >= _ENOUGH and by_state < _BETTER * by_had

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

        Expected visits of the absorbing chain, ``(I - Q)^-1 1``; a state that forks has its
        branches' visits as well. As new as the last change of one part in 32.
        """
        if self._changes > self._solved_at + self._solved_at // 32:
            self._left, self._solved_at = self._solve(), self._changes
        return self._left.get(state)

    @property
    def forks(self) -> bool:
        """Whether its programs have branches."""
        return bool(self._forks)

    def service_left(self, places: Iterable[tuple[str, bool, bool]]) -> float | None:
        """Seconds of service that a program still needs; None when nothing is known of any of its
        conversations. `places` are their states, whether the call there has ended, and whether
        its branches are there: then they are conversations of their own."""
        steps, known = 0.0, False
        for state, ended, forked in places:
            left = None if state == START else self.steps_left(state)
            if left is not None:
                steps += left - ended - (self._branches(state) if forked else 0.0)
                known = True
        return self.step_seconds * max(0.0, steps) if known else None

    def _branches(self, state: str) -> float:
        """LLM calls of the branches of a state, of those that are expected of it."""
        each = self.steps_left(f"{FORK}{state}") or 0.0
        return each * self._forks.get(state, 0.0) / max(1.0, self._visits.get(state, 0.0))

    def forecast(self, state: str, tool: str) -> Forecast:
        """What to expect of a program that waits for `tool` in `state`."""
        return Forecast(
            tool=tool,
            next=self.following(state),
            seconds_p50=self.durations.quantile(tool, 0.5),
            seconds_p95=self.durations.quantile(tool, 0.95),
            steps_left=self.steps_left(state),
        )

    def calibrate(self, forecast: Forecast, seconds: float, state: str) -> None:
        """What was foretold when a program called a tool, and when and where it came back."""
        self.calibrations.setdefault(forecast.tool, Calibration()).observe(forecast, seconds, state)

    # --- kept across restarts -------------------------------------------------------------

    @property
    def changes(self) -> int:
        """Grows with everything that is learned."""
        return self._changes + self.programs

    def saved(self) -> dict[str, Any]:
        """All that was learned, as JSON."""
        return {
            "edges": sorted([s, t, d["n"]] for s, t, d in self._graph.edges(data=True)),
            "visits": self._visits,
            "forks": self._forks,
            "durations": self.durations.saved(),
            "contexts": list(self.contexts),
            "services": list(self.services),
            "spans": list(self.spans),
            "sizes": list(self.sizes),
            "look": self.look.saved(),
            "told": self.told.saved(),
            "declared": self.declared.saved(),
            "calibrations": {tool: asdict(c) for tool, c in self.calibrations.items()},
            **{name: getattr(self, name) for name in _SAVED},
            "errors": self._errors,
        }

    @classmethod
    def restore(cls, agent: str, saved: dict[str, Any]) -> "ExecutionGraph":
        """What `saved` kept. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        graph = cls(agent)
        for source, target, count in saved["edges"]:
            graph._edge(str(source), str(target))["n"] = float(count)
        graph._visits, graph._forks = dict(saved["visits"]), dict(saved["forks"])
        for source in list(graph._graph):
            graph._touch(source)
        graph.durations.restore(saved["durations"])
        graph.contexts.extend(map(int, saved["contexts"]))
        graph.services.extend(map(float, saved["services"]))
        graph.spans.extend(map(float, saved["spans"]))
        graph.sizes.extend((int(n), int(p), float(s)) for n, p, s in saved.get("sizes", ()))
        graph.look.restore(saved.get("look", ()))
        graph.told.restore(saved.get("told", ()))
        graph.declared.restore(saved.get("declared", {}))
        graph.calibrations = {t: Calibration(**c) for t, c in saved["calibrations"].items()}
        for name, kind in _SAVED.items():
            setattr(graph, name, kind(saved[name]))
        graph._errors = [float(error) for error in saved["errors"]]
        if graph.contexts:
            graph._summarise()
        return graph

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
        self._changes += 1

    def _solve(self) -> dict[str, float]:
        # sorted: where there is hardly a way out, another order might find none
        states = sorted(s for s in self._graph if s != END and self._graph.out_degree(s))
        place = {s: i for i, s in enumerate(states)}
        matrix = np.eye(len(states))
        for source, target, edge in self._graph.edges(data=True):
            if source in place and target in place:
                matrix[place[source], place[target]] -= edge["p"]
        for state, count in self._forks.items():
            branch = f"{FORK}{state}"
            if state in place and branch in place:
                matrix[place[state], place[branch]] -= count / max(1.0, self._visits.get(state, 0))
        costs = np.array([0.0 if s == START or s.startswith(FORK) else 1.0 for s in states])
        try:
            left = np.linalg.solve(matrix, costs)
        except np.linalg.LinAlgError:  # no way out has been seen yet
            return {}
        # less than one call: by what was seen so far, branches multiply for ever
        return {s: _bounded(float(left[i])) for s, i in place.items()}


def _bounded(steps: float) -> float:
    return min(_MAX_STEPS, steps) if steps > 1 - 1e-6 else _MAX_STEPS


__all__ = ["END", "FORK", "START", "ExecutionGraph", "State"]
