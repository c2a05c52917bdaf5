"""Cost model of probing: run new programs until their size is known, then run the small ones."""

from collections import deque

import numpy as np

_ENOUGH = 4  # programs whose size became known


class ProbeCost:
    """Estimate what probing the programs of one agent costs for each program that ends.

    A program's size becomes known on its way: it begins branches, or declares anew how many calls
    are to come. Before that, all programs of the agent look alike.

    Attributes:
        calls: median of the LLM calls after which the size is known; 0 while too few programs
            revealed it.
    """

    def __init__(self) -> None:
        self._observed: deque[tuple[int, float, float]] = deque(maxlen=128)
        self._costs: dict[float, float] = {}
        self.calls = 0

    def observe(self, calls: int, seconds: float, size: float) -> None:
        """Record a finished program.

        Args:
            calls: LLM calls after which its size was known; 0 if it never was.
            seconds: service that it had had by then.
            size: its total service, in the unit of `cost`'s argument.
        """
        self._observed.append((calls, seconds, size))
        self._costs.clear()
        revealed = sorted(calls for calls, _, _ in self._observed if calls)
        self.calls = revealed[len(revealed) // 2] if len(revealed) >= _ENOUGH else 0

    def cost(self, unit: float) -> float | None:
        """Return the seconds of service for each completion, if all new programs are probed.

        The largest are not continued: this is the inverse of a Gittins index whose stopping rule
        sees the revealed size (Gittins 1979; Weitzman's boxes, 1979).

        Args:
            unit: seconds of service that a size of 1 stands for.

        Returns:
            None while too few programs revealed their size.
        """
        if not self.calls:
            return None
        if unit not in self._costs:
            self._costs[unit] = self._cost(unit)
        return self._costs[unit]

    def _cost(self, unit: float) -> float:
        calls, seconds, sizes = np.array(self._observed).T
        total = sizes * unit
        probed = np.where(calls > 0, np.minimum(seconds, total), total)
        rest = np.sort(total - probed)
        spent = probed.sum() + np.cumsum(rest)  # probe all, then run the n smallest to their end
        return float(np.min(spent / np.arange(1, len(rest) + 1)))

    def saved(self) -> list[tuple[int, float, float]]:
        """Return the observations as JSON."""
        return list(self._observed)

    def restore(self, saved: list[tuple[int, float, float]]) -> None:
        """Add the observations that `saved` returned."""
        for calls, seconds, size in saved:
            self.observe(int(calls), float(seconds), float(size))


__all__ = ["ProbeCost"]
