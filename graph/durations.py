"""How long things take: the last samples of each key, as an empirical distribution.

Empirical and not log-normal: on recorded agents a fitted log-normal's 95th percentile covered
only 82-88 % of some tools (research/scheduling.md §2.1).
"""

from bisect import bisect_right
from collections import deque
from typing import Any

_KEPT = 128
_ENOUGH = 8


class Durations:
    """Seconds by key, with a common pool to fall back on while a key is young."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[float]] = {}
        self._all: deque[float] = deque(maxlen=4 * _KEPT)
        self._priors: dict[str, float] = {}

    def expect(self, key: str, seconds: float) -> None:
        """What a declaration says; it counts until there are samples."""
        self._priors[key] = seconds

    def observe(self, key: str, seconds: float) -> None:
        self._samples.setdefault(key, deque(maxlen=_KEPT)).append(max(0.0, seconds))
        self._all.append(max(0.0, seconds))

    @property
    def keys(self) -> list[str]:
        """What there are samples of."""
        return sorted(self._samples)

    def saved(self) -> dict[str, Any]:
        """As JSON; declarations are not part of it, they are made anew."""
        return {"keys": {k: list(v) for k, v in self._samples.items()}, "all": list(self._all)}

    def restore(self, saved: dict[str, Any]) -> None:
        for key, samples in saved["keys"].items():
            self._samples[str(key)] = deque(map(float, samples), maxlen=_KEPT)
        self._all.extend(map(float, saved["all"]))

    def samples(self, key: str) -> list[float]:
        """Sorted seconds: of the key if it has enough, else the declared value, else of all."""
        own = self._samples.get(key, ())
        if len(own) >= _ENOUGH:
            return sorted(own)
        if key in self._priors:
            prior = self._priors[key]
            return sorted([*own, 0.5 * prior, prior, 3 * prior])
        return sorted(own) if own else sorted(self._all)

    def quantile(self, key: str, share: float) -> float | None:
        """The seconds that `share` of the samples do not exceed; None when nothing is known."""
        found = self.samples(key)
        return found[min(len(found) - 1, int(share * len(found)))] if found else None

    def chance_within(self, key: str, seconds: float) -> float:
        """The share of the samples of at most `seconds`; 0 when nothing is known."""
        found = self.samples(key)
        return bisect_right(found, seconds) / len(found) if found else 0.0


__all__ = ["Durations"]
