"""Quantile sketch: a distribution of seconds as decayed counts in logarithmic buckets.

This is DDSketch (Masson, Rim and Lee, VLDB 2019): a quantile is within 2 % of a value that was
observed at its rank, and the sum of two sketches is the sketch of all observations. Old
observations decay by `DECAY` with each new one, so that a sketch follows changes.
"""

import math
from typing import Any

import numpy as np

ACCURACY, DECAY = 0.02, 0.995
_BASE = (1 + ACCURACY) / (1 - ACCURACY)
_LOG = math.log(_BASE)
_LEAST, _BUCKETS = 1e-3, 480  # up to 1e5 seconds; less than a millisecond counts as 0
_RESCALE_ABOVE = 1e100
_NONE = np.zeros(0)
_VALUES = np.concatenate([[0.0], _LEAST * _BASE ** np.arange(_BUCKETS - 1) * 2 / (1 + _BASE)])


class QuantileSketch:
    """Keep decayed counts of observed seconds.

    Only the buckets between the first and the last one in use take memory: a tool that was called
    once costs a few hundred bytes.
    """

    __slots__ = ("_counts", "_first", "_sums", "_weight")

    def __init__(self) -> None:
        self._first = 0
        self._counts = _NONE
        self._sums: np.ndarray[Any, Any] | None = None
        self._weight = 1.0

    def observe(self, seconds: float) -> None:
        """Add an observation; earlier ones decay by `DECAY`."""
        self._weight /= DECAY
        at = _bucket(seconds)
        self._reach(at, at + 1)
        self._counts[at - self._first] += self._weight
        self._sums = None
        if self._weight > _RESCALE_ABOVE:
            self._counts /= self._weight
            self._weight = 1.0

    def merge(self, other: "QuantileSketch") -> None:
        """Add the observations of another sketch."""
        if not len(other._counts):
            return
        self._reach(other._first, other._first + len(other._counts))
        start = other._first - self._first
        part = self._counts[start : start + len(other._counts)]
        part += other._counts * (self._weight / other._weight)
        self._sums = None

    def _reach(self, first: int, end: int) -> None:
        """Widen the range of buckets to cover `first` to `end`, exclusive."""
        if not len(self._counts):
            self._first, self._counts = first, np.zeros(end - first)
            return
        last = self._first + len(self._counts)
        if self._first <= first and end <= last:
            return
        begin = min(first, self._first)
        counts = np.zeros(max(end, last) - begin)
        counts[self._first - begin : last - begin] = self._counts
        self._first, self._counts = begin, counts

    @property
    def count(self) -> float:
        """Return the decayed number of observations."""
        return self._total / self._weight

    def quantile(self, share: float) -> float | None:
        """Return the seconds that `share` of the observations do not exceed; None without any."""
        if not (total := self._total):
            return None
        below = min(share, 1.0) * total * (1 - 1e-12)
        at = self._first + int(np.searchsorted(self._cumulated, below, side="right"))
        return float(_VALUES[min(at, _BUCKETS - 1)])

    def share_within(self, seconds: float) -> float:
        """Return the share of the observations that are at most `seconds`; 0 without any."""
        at, total = _bucket(seconds) - self._first, self._total
        if not total or at < 0:
            return 0.0
        return float(self._cumulated[min(at, len(self._counts) - 1)] / total)

    @property
    def _total(self) -> float:
        return float(self._cumulated[-1]) if len(self._counts) else 0.0

    @property
    def _cumulated(self) -> "np.ndarray[Any, Any]":
        if self._sums is None:
            self._sums = np.cumsum(self._counts)
        return self._sums

    def saved(self) -> dict[str, float]:
        """Return the weight of each bucket in use, as JSON."""
        there = np.flatnonzero(self._counts)
        return {str(self._first + at): float(self._counts[at] / self._weight) for at in there}

    @classmethod
    def restore(cls, saved: dict[str, float]) -> "QuantileSketch":
        """Return the sketch that `saved` described.

        Raises:
            TypeError, ValueError: `saved` is something else.
        """
        if not isinstance(saved, dict):
            raise TypeError(f"a sketch is a dict of counts by bucket, not {saved!r}")
        found = cls()
        for at, count in saved.items():
            if not (0 <= int(at) < _BUCKETS and 0 <= float(count) < math.inf):
                raise ValueError(f"bucket {at} of {count} observations")
            found._reach(int(at), int(at) + 1)
            found._counts[int(at) - found._first] = float(count)
        return found


def _bucket(seconds: float) -> int:
    if not seconds > _LEAST / _BASE:
        return 0
    return min(_BUCKETS - 1, max(1, 1 + math.ceil(math.log(seconds / _LEAST) / _LOG - 1e-9)))


__all__ = ["ACCURACY", "DECAY", "QuantileSketch"]
