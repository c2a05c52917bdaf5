"""A distribution of seconds in little room: decayed counts in logarithmic buckets.

DDSketch (Masson, Rim and Lee, VLDB 2019): a quantile is within 2 % of a value that was observed at
its rank, and the sum of two sketches is the sketch of all observations. Old observations fade by
`DECAY` with each new one, so a sketch follows what changes.
"""

import math
from typing import Any

import numpy as np

ACCURACY, DECAY = 0.02, 0.995
_BASE = (1 + ACCURACY) / (1 - ACCURACY)
_LOG = math.log(_BASE)
_LEAST, _BUCKETS = 1e-3, 480  # up to 1e5 seconds; what is less than a millisecond is 0
_TOO_HEAVY = 1e100
_VALUES = np.concatenate([[0.0], _LEAST * _BASE ** np.arange(_BUCKETS - 1) * 2 / (1 + _BASE)])


class Sketch:
    """`count` is what the observations still weigh."""

    __slots__ = ("_counts", "_sums", "_weight")

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS)
        self._sums: np.ndarray[Any, Any] | None = None
        self._weight = 1.0

    def observe(self, seconds: float) -> None:
        self._weight /= DECAY
        self._counts[_bucket(seconds)] += self._weight
        self._sums = None
        if self._weight > _TOO_HEAVY:
            self._counts /= self._weight
            self._weight = 1.0

    def merge(self, other: "Sketch") -> None:
        """Add what another one has observed."""
        self._counts += other._counts * (self._weight / other._weight)
        self._sums = None

    @property
    def count(self) -> float:
        return float(self._cumulated[-1]) / self._weight

    def quantile(self, share: float) -> float | None:
        """The seconds that `share` of the observations do not exceed; None without any."""
        sums = self._cumulated
        if not sums[-1]:
            return None
        at = int(np.searchsorted(sums, min(share, 1.0) * sums[-1] * (1 - 1e-12), side="right"))
        return float(_VALUES[min(at, _BUCKETS - 1)])

    def share_within(self, seconds: float) -> float:
        """The share of the observations of at most so many seconds; 0 without any."""
        sums = self._cumulated
        return float(sums[_bucket(seconds)] / sums[-1]) if sums[-1] else 0.0

    @property
    def _cumulated(self) -> "np.ndarray[Any, Any]":
        if self._sums is None:
            self._sums = np.cumsum(self._counts)
        return self._sums

    def saved(self) -> dict[str, float]:
        """As JSON: the weight of each bucket that has any."""
        there = np.flatnonzero(self._counts)
        return {str(at): float(self._counts[at] / self._weight) for at in there}

    @classmethod
    def restore(cls, saved: dict[str, float]) -> "Sketch":
        """What `saved` kept. Raises `TypeError` or `ValueError` for anything else."""
        if not isinstance(saved, dict):
            raise TypeError(f"no sketch: {saved!r}")
        found = cls()
        for at, count in saved.items():
            if not (0 <= int(at) < _BUCKETS and 0 <= float(count) < math.inf):
                raise ValueError(f"bucket {at} of {count} observations")
            found._counts[int(at)] = float(count)
        return found


def _bucket(seconds: float) -> int:
    if not seconds > _LEAST / _BASE:
        return 0
    return min(_BUCKETS - 1, max(1, 1 + math.ceil(math.log(seconds / _LEAST) / _LOG - 1e-9)))


__all__ = ["ACCURACY", "DECAY", "Sketch"]
