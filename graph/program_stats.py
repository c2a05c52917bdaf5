"""Statistics of the finished programs of one agent."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from drawloom.graph.probe_cost import ProbeCost
from drawloom.graph.running_mean import RunningMean

_ENOUGH = 8  # programs, before the graph's states may be found informative
_BETTER = 0.9  # of the other forecast's error
_DECAY = 0.995
_RECENT = 128  # programs whose values are kept


@dataclass(frozen=True, slots=True)
class ProgramSummary:
    """Describe a finished program.

    Attributes:
        peak_tokens: the most private KV tokens that it had.
        service: seconds that its LLM calls had at the engine.
        turnaround: seconds from its first admission to its end.
        jct: seconds from its submission to its end; None if unknown.
        steps: LLM calls.
        trail: at the end of a call, the service so far and the service that was then expected to
            follow.
        size_known_at: calls and service after which its size was known; None if it never was.
        declaration_growth: the calls in all that it declared last, over those that it declared
            before its first call; None if it declared none.
        declared_calls: the calls in all that it declared last.
    """

    peak_tokens: int
    service: float = 0.0
    turnaround: float = 0.0
    jct: float | None = None
    steps: int = 0
    trail: Sequence[tuple[float, float]] = ()
    size_known_at: tuple[int, float] | None = None
    declaration_growth: float | None = None
    declared_calls: float | None = None


class ProgramStats:
    """Keep sizes and durations of an agent's recent programs.

    Attributes:
        programs: finished programs, in all.
        services: seconds of service of recent programs.
        sizes: LLM calls, peak in KV tokens and seconds of service of recent programs.
        mean_peak_tokens: mean of the peaks, in private KV tokens; None before any program ended.
        peak_deviation: standard deviation of the peaks.
        mean_turnaround: mean seconds from admission to end; None before any program ended.
        mean_service: mean seconds of service; None before any program ended.
        step_seconds: mean seconds of service of an LLM call; 0 while unknown.
        size_probe: cost of probing programs whose branches reveal their size, in seconds.
        declared_probe: cost of probing programs whose declarations reveal it, in units of what they
            had declared at first.
        states_informative: the graph's states predicted the service that finished programs still
            needed better than the service that these had had.
    """

    def __init__(self) -> None:
        self.programs = 0
        self.services: deque[float] = deque(maxlen=_RECENT)
        self.sizes: deque[tuple[int, int, float]] = deque(maxlen=_RECENT)
        self._peaks: deque[int] = deque(maxlen=_RECENT)
        self._turnarounds: deque[float] = deque(maxlen=_RECENT)
        self._jct = RunningMean()
        self.mean_peak_tokens: int | None = None
        self.peak_deviation = 0.0
        self.mean_turnaround: float | None = None
        self.mean_service: float | None = None
        self.step_seconds = 0.0
        self.size_probe, self.declared_probe = ProbeCost(), ProbeCost()
        self.states_informative = False
        self._sorted_services = np.zeros(0)
        self._errors = [0.0, 0.0]  # decayed, of forecasts by state and by attained service

    @property
    def mean_jct(self) -> float | None:
        """Return the mean seconds from submission to end; None before any program ended."""
        return self._jct.value

    def finished(self, summary: ProgramSummary) -> None:
        """Record a finished program."""
        self._compare_forecasts(summary.service, summary.trail)
        self.programs += 1
        self._peaks.append(summary.peak_tokens)
        self.services.append(summary.service)
        self._turnarounds.append(summary.turnaround)
        if summary.steps:
            self.sizes.append((summary.steps, summary.peak_tokens, summary.service))
        calls, service = summary.size_known_at or (0, summary.service)
        self.size_probe.observe(calls, service, summary.service)
        if summary.declaration_growth is not None:
            self.declared_probe.observe(calls, service, summary.declaration_growth)
        if summary.jct is not None:
            self._jct.add(summary.jct)
        self._summarise()

    def _summarise(self) -> None:
        mean = fmean(self._peaks)
        variance = fmean([(peak - mean) ** 2 for peak in self._peaks])
        self.mean_peak_tokens, self.peak_deviation = int(mean), variance**0.5
        self.mean_turnaround, self.mean_service = fmean(self._turnarounds), fmean(self.services)
        if calls := sum(steps for steps, _, _ in self.sizes):
            self.step_seconds = sum(service for _, _, service in self.sizes) / calls
        self._sorted_services = np.sort(np.array(self.services))

    def _compare_forecasts(self, service: float, trail: Sequence[tuple[float, float]]) -> None:
        """Compare two forecasts of a program's remaining service with the truth.

        One is by the graph's states (in `trail`), the other the mean of earlier programs that had
        come as far.
        """
        checked = [pair for pair in trail if pair[0] < service]
        if checked and len(self._sorted_services):
            had, by_state = np.array(checked).T
            rank = np.searchsorted(self._sorted_services, had, side="right")
            longer = len(self._sorted_services) - rank
            sums = np.append(np.cumsum(self._sorted_services[::-1])[::-1], 0.0)[rank]
            some = longer > 0
            left = service - had[some]
            by_service = sums[some] / longer[some] - had[some]
            fade = _DECAY ** np.arange(len(left) - 1, -1, -1)
            for at, guess in enumerate((by_state[some], by_service)):
                self._errors[at] *= _DECAY ** len(left)
                self._errors[at] += float(fade @ np.abs(guess - left))
        state_error, service_error = self._errors
        enough = self.programs >= _ENOUGH
        self.states_informative = enough and state_error < _BETTER * service_error

    # --- kept across restarts -------------------------------------------------------------

    def saved(self) -> dict[str, Any]:
        """Return the statistics as JSON."""
        return {
            "contexts": list(self._peaks),
            "services": list(self.services),
            "spans": list(self._turnarounds),
            "sizes": list(self.sizes),
            "look": self.size_probe.saved(),
            "told": self.declared_probe.saved(),
            "step_seconds": self.step_seconds,
            "informed": self.states_informative,
            "programs": self.programs,
            "errors": self._errors,
            "usual_jct": self.mean_jct,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Replace the statistics by those that `saved` returned.

        Raises:
            KeyError, TypeError, ValueError: `saved` is something else.
        """
        self._peaks.extend(map(int, saved["contexts"]))
        self.services.extend(map(float, saved["services"]))
        self._turnarounds.extend(map(float, saved["spans"]))
        self.sizes.extend((int(n), int(p), float(s)) for n, p, s in saved.get("sizes", ()))
        self.size_probe.restore(saved.get("look", ()))
        self.declared_probe.restore(saved.get("told", ()))
        self.step_seconds = float(saved["step_seconds"])
        self.states_informative = bool(saved["informed"])
        self.programs = int(saved["programs"])
        self._errors = [float(error) for error in saved["errors"]]
        if (jct := saved.get("usual_jct")) is not None:
            self._jct.add(float(jct))
        if self._peaks:
            self._summarise()


__all__ = ["ProgramStats", "ProgramSummary"]
