"""What programs come to, by the LLM calls that they make."""

from collections.abc import Sequence

import numpy as np

_ENOUGH = 8  # programs, before a line through them says anything


class Trend:
    """The least-squares line through (calls, value) of programs, and how far they are from it.
    More calls never need less: where it falls, it is chance, and says nothing."""

    def __init__(self, calls: Sequence[float], values: Sequence[float]) -> None:
        self._line: tuple[float, float] | None = None
        self.spread = 0.0
        if len(calls) < _ENOUGH or not np.ptp(calls):
            return
        slope, base = np.polyfit(calls, values, 1)
        if slope >= 0:
            self._line = float(base), float(slope)
            self.spread = float(np.std(np.asarray(values) - base - slope * np.asarray(calls)))

    def at(self, calls: float) -> float | None:
        """The value of a program of so many calls, at least 0; None while too little is known."""
        if self._line is None:
            return None
        base, slope = self._line
        return max(0.0, base + slope * calls)


__all__ = ["Trend"]
