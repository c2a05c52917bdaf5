"""The execution graph: what programs of one agent do, learned from what they did.

A state is where an LLM call was made and which tool had answered before it: (call site, last
tool) predicts the number of steps left with less than half the error of the kind of step alone
(research/sdk.md §2). Declared edges are priors, observed steps are counts. Clients name their
tools, so states are bounded: beyond `STATES` of an agent, new ones are one state, ``other``.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import networkx as nx
import numpy as np

from drawloom.graph.calibration import Calibration
from drawloom.graph.declaration_record import Record
from drawloom.graph.forecast import Forecast
from drawloom.graph.probe_cost import Look
from drawloom.graph.state_chain import END, FORK, START, Chain
from drawloom.graph.tool_durations import OTHER, Durations

_ENOUGH, _BETTER = 8, 0.9
_SAVED: dict[str, Callable[[Any], Any]] = {
    "shared": int, "step_seconds": float, "informed": bool, "programs": int
}  # fmt: skip
_DECAY = 0.995
_LEARN = 0.05
_TOOLS = 256  # whose forecasts are checked apart
_RECENT = 128  # programs that say what others will be like
Place = tuple[str, bool, bool]


@dataclass(frozen=True, slots=True)
class State:
    """A place in an agent: a call site and the tool that answered last."""

    site: str
    tool: str = ""

    def __str__(self) -> str:
        return f"{self.site}/{self.tool}" if self.tool else self.site


class ExecutionGraph:
    """Learn states, durations and sizes from the programs of one agent.

    Attributes:
        chain: its states, and the moves between them.
        shared: tokens that a new program of it finds in the cache.
        usual_peak: the mean of the most KV tokens that finished programs had for themselves.
        peak_spread: the standard deviation of these.
        usual_span: the mean seconds from admission to end.
        usual_service: the mean seconds that the LLM calls of one took; None before any.
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
        self.contexts: deque[int] = deque(maxlen=_RECENT)
        self.services: deque[float] = deque(maxlen=_RECENT)
        self.spans: deque[float] = deque(maxlen=_RECENT)
        self.sizes: deque[tuple[int, int, float]] = deque(maxlen=_RECENT)
        self.look, self.told, self.declared = Look(), Look(), Record()
        self.usual_peak: int | None = None
        self.peak_spread = 0.0
        self.usual_span: float | None = None
        self.usual_jct: float | None = None
        self.usual_service: float | None = None
        self._sorted = np.zeros(0)
        self.shared = 0
        self.chain = Chain()
        self._forks = False
        self.step_seconds = 0.0
        self.informed = False
        self._errors = [0.0, 0.0]
        self.calibrations: dict[str, Calibration] = {}
        self.programs = 0

    @property
    def nx(self) -> "nx.DiGraph[str]":
        """The graph as it is now: decayed counts `n` and probabilities `p` on its edges."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        for source, moves in self.chain.moves.items():
            graph.add_node(source)
            for target, p in moves.chances().items():
                graph.add_edge(source, target, n=moves.counts.get(target, 0.0) / moves.scale, p=p)
        return graph

    def knows(self, source: str, target: str) -> bool:
        """Return whether `target` was declared or seen after `source`."""
        moves = self.chain.moves.get(source)
        return moves is not None and (target in moves.counts or target in moves.priors)

    def named(self, state: str) -> str:
        """Return the state that stands for this one: itself, or ``other`` beyond the bound."""
        return self.chain.named(state)

    def declare(self, source: str, target: str, p: float) -> None:
        """Expect `target` after `source` with probability `p`, until observations outweigh it."""
        self.chain.declare(source, target, p)

    def observe(self, source: str, target: str) -> None:
        """Count a program that went from one state to another."""
        self.chain.observe(source, target)

    def forked(self, state: str) -> str:
        """Count a conversation in `state` that was forked; return where the branch begins."""
        self._forks = True
        return self.chain.forked(state)

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
        """Learn the seconds from a program's submission to its end."""
        usual = jct if self.usual_jct is None else self.usual_jct
        self.usual_jct = usual + _LEARN * (jct - usual)

    def _summarise(self) -> None:
        mean = fmean(self.contexts)
        spread = fmean([(peak - mean) ** 2 for peak in self.contexts])
        self.usual_peak, self.peak_spread = int(mean), spread**0.5
        self.usual_span, self.usual_service = fmean(self.spans), fmean(self.services)
        if calls := sum(steps for steps, _, _ in self.sizes):
            self.step_seconds = sum(service for _, _, service in self.sizes) / calls
        self._sorted = np.sort(np.array(self.services))

    def _judge(self, service: float, trail: Sequence[tuple[float, float]]) -> None:
        """Find which would have known better what was still to come: the states, or the mean of
        those that had come as far."""
        checked = [pair for pair in trail if pair[0] < service]
        if checked and len(self._sorted):
            had, expected = np.array(checked).T
            place = np.searchsorted(self._sorted, had, side="right")
            others = len(self._sorted) - place
            sums = np.append(np.cumsum(self._sorted[::-1])[::-1], 0.0)[place]
            there = others > 0
            left = service - had[there]
            by_service = sums[there] / others[there] - had[there]
            fade = _DECAY ** np.arange(len(left) - 1, -1, -1)
            for at, guess in enumerate((expected[there], by_service)):
                self._errors[at] *= _DECAY ** len(left)
                self._errors[at] += float(fade @ np.abs(guess - left))
        by_state, by_had = self._errors
        self.informed = self.programs >= _ENOUGH and by_state < _BETTER * by_had

    def following(self, state: str) -> dict[str, float]:
        """Return the probability of each next state."""
        return self.chain.chances(state)

    def steps_left(self, state: str) -> float | None:
        """Return the LLM calls until the end, this state's own included; None when nothing is
        known. As new as the last time that the chain was solved."""
        return self.chain.left(state)

    @property
    def forks(self) -> bool:
        """Whether its programs have branches."""
        return self._forks

    def service_left(self, places: Mapping[Place, int]) -> float | None:
        """Return the seconds of service that a program still needs; None when nothing is known of
        any of its conversations.

        Args:
            places: how many of its conversations are in each state, whether the call there has
                ended, and whether its branches are there: then they are counted for themselves.
        """
        steps, known = 0.0, False
        for (state, ended, forked), count in places.items():
            left = None if state == START else self.steps_left(state)
            if left is not None:
                steps += count * (left - ended - (self.chain.branches(state) if forked else 0.0))
                known = True
        return self.step_seconds * max(0.0, steps) if known else None

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
        """Check what was foretold when a program called a tool against when and where it came
        back."""
        tool = forecast.tool
        if tool not in self.calibrations and len(self.calibrations) >= _TOOLS:
            tool = OTHER
        self.calibrations.setdefault(tool, Calibration()).observe(forecast, seconds, state)

    # --- kept across restarts -------------------------------------------------------------

    @property
    def changes(self) -> int:
        """Grows with everything that is learned."""
        return self.chain.changes + self.programs

    def saved(self) -> dict[str, Any]:
        """All that was learned, as JSON."""
        return {
            "edges": [list(edge) for edge in self.chain.edges],
            "visits": {s: m.visits for s, m in self.chain.moves.items() if m.visits},
            "forks": {s: m.forks for s, m in self.chain.moves.items() if m.forks},
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
            "usual_jct": self.usual_jct,
        }

    @classmethod
    def restore(cls, agent: str, saved: dict[str, Any]) -> "ExecutionGraph":
        """What `saved` kept. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        graph = cls(agent)
        graph.chain.restore(saved["edges"], saved["visits"], saved["forks"])
        graph._forks = bool(saved["forks"])
        graph.durations.restore(saved["durations"])
        graph.contexts.extend(map(int, saved["contexts"]))
        graph.services.extend(map(float, saved["services"]))
        graph.spans.extend(map(float, saved["spans"]))
        graph.sizes.extend((int(n), int(p), float(s)) for n, p, s in saved.get("sizes", ()))
        graph.look.restore(saved.get("look", ()))
        graph.told.restore(saved.get("told", ()))
        graph.declared.restore(saved.get("declared", {}))
        checked = list(saved["calibrations"].items())[: _TOOLS + 1]
        graph.calibrations = {tool: Calibration(**one) for tool, one in checked}
        for name, kind in _SAVED.items():
            setattr(graph, name, kind(saved[name]))
        graph._errors = [float(error) for error in saved["errors"]]
        if (jct := saved.get("usual_jct")) is not None:
            graph.usual_jct = float(jct)
        if graph.contexts:
            graph._summarise()
        return graph


__all__ = ["END", "FORK", "START", "ExecutionGraph", "Place", "State"]
