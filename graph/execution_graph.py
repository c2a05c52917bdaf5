"""Execution graph of one agent: a prediction of its programs, learned from finished ones.

A state is a call site and the tool that answered last: together they predict the number of steps
left with less than half the error of the kind of step alone. Declared edges are priors, observed
steps are counts. Clients name their tools, so states are bounded: beyond `STATES` of an agent, new
ones are counted as one state, ``other``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from drawloom.graph.calibration import Calibration
from drawloom.graph.declaration_record import DeclarationRecord
from drawloom.graph.forecast import Forecast
from drawloom.graph.program_stats import ProgramStats, ProgramSummary
from drawloom.graph.tool_durations import OTHER, ToolDurations
from drawloom.graph.transition_model import END, FORK, START, TransitionModel

_TOOLS = 256  # whose forecasts are checked apart


@dataclass(frozen=True, slots=True)
class GraphState:
    """Name a state of an agent: a call site and the tool that answered last."""

    site: str
    tool: str = ""

    def __str__(self) -> str:
        return f"{self.site}/{self.tool}" if self.tool else self.site


class Position(NamedTuple):
    """Locate a conversation in the execution graph.

    Attributes:
        state: the graph state of its last call.
        call_ended: that call has ended.
        forked: the conversation was forked after it; its branches are counted for themselves.
    """

    state: str
    call_ended: bool
    forked: bool


class ExecutionGraph:
    """Learn what programs of one agent do, and forecast what one will do next.

    Attributes:
        agent: its name.
        transitions: states, and how often programs go from one to another.
        stats: sizes and durations of finished programs.
        durations: seconds that tools take.
        declared: how well programs keep to the calls that they declare.
        shared_tokens: tokens that a new program's first prompt finds in the prefix cache.
        calibrations: forecasts compared with what happened, by key of tools.
    """

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.transitions = TransitionModel()
        self.stats = ProgramStats()
        self.durations = ToolDurations()
        self.declared = DeclarationRecord()
        self.shared_tokens = 0
        self.calibrations: dict[str, Calibration] = {}

    def finished(self, summary: ProgramSummary) -> None:
        """Learn from a finished program."""
        self.stats.finished(summary)
        if summary.declared_calls is not None:
            self.declared.observe(summary.declared_calls, summary.steps)

    def service_left(self, positions: Mapping[Position, int]) -> float | None:
        """Return the seconds of service that a program still needs.

        Args:
            positions: how many of its conversations are at each position.

        Returns:
            None when nothing is known of any of them.
        """
        steps, known = 0.0, False
        for (state, ended, forked), count in positions.items():
            left = None if state == START else self.transitions.calls_left(state)
            if left is not None:
                branches = self.transitions.branch_calls(state) if forked else 0.0
                steps += count * (left - ended - branches)
                known = True
        return self.stats.step_seconds * max(0.0, steps) if known else None

    def forecast(self, state: str, tool: str) -> Forecast:
        """Forecast the return of a program that waits for `tool` in `state`."""
        return Forecast(
            tool=tool,
            next=self.transitions.probabilities(state),
            seconds_p50=self.durations.quantile(tool, 0.5),
            seconds_p95=self.durations.quantile(tool, 0.95),
            steps_left=self.transitions.calls_left(state),
        )

    def calibrate(self, forecast: Forecast, seconds: float, state: str) -> None:
        """Compare a forecast with its program's return.

        Args:
            forecast: made when the program called its tools.
            seconds: time from then until its next LLM call.
            state: the graph state of that call.
        """
        tool = forecast.tool
        if tool not in self.calibrations and len(self.calibrations) >= _TOOLS:
            tool = OTHER
        self.calibrations.setdefault(tool, Calibration()).observe(forecast, seconds, state)

    # --- kept across restarts -------------------------------------------------------------

    @property
    def changes(self) -> int:
        """Return a number that grows with everything that is learned."""
        return self.transitions.changes + self.stats.programs

    def saved(self) -> dict[str, Any]:
        """Return everything that was learned, as JSON."""
        return {
            **self.transitions.saved(),
            **self.stats.saved(),
            "durations": self.durations.saved(),
            "declared": self.declared.saved(),
            "calibrations": {tool: asdict(c) for tool, c in self.calibrations.items()},
            "shared": self.shared_tokens,
        }

    @classmethod
    def restore(cls, agent: str, saved: dict[str, Any]) -> "ExecutionGraph":
        """Return the graph that `saved` described.

        Raises:
            KeyError, TypeError, ValueError: `saved` is something else.
        """
        graph = cls(agent)
        graph.transitions.restore(saved)
        graph.durations.restore(saved["durations"])
        graph.declared.restore(saved.get("declared", {}))
        checked = list(saved["calibrations"].items())[: _TOOLS + 1]
        graph.calibrations = {tool: Calibration(**one) for tool, one in checked}
        graph.shared_tokens = int(saved["shared"])
        graph.stats.restore(saved)
        return graph


__all__ = ["END", "FORK", "START", "ExecutionGraph", "GraphState", "Position"]
