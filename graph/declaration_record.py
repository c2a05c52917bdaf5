"""Correct declared numbers of calls by earlier declarations."""

from math import log2

_LEARN = 0.1
_FAR = 2.0  # nearer than this, what is left is noise


class Record:
    """Compare declared calls with calls made, by about how many were declared, for one agent.
    Declarations are of one kind when they differ by less than a factor of about 1.4."""

    def __init__(self) -> None:
        self._ratios: dict[int, float] = {}

    def observe(self, declared: float, made: int) -> None:
        """Learn from a program that ended: the calls that it last declared, and those it made."""
        if declared > 0 and made > 0:
            kind, ratio = _kind(declared), made / declared
            known = self._ratios.get(kind, ratio)
            self._ratios[kind] = known + _LEARN * (ratio - known)

    def expected(self, declared: float) -> float:
        """Return the calls to expect of a program that declared `declared`: these, unless programs
        that declared about as many made less than half or more than twice of them."""
        ratio = self._ratios.get(_kind(declared), 1.0)
        return declared if 1 / _FAR <= ratio <= _FAR else declared * ratio

    def saved(self) -> dict[str, float]:
        return {str(kind): ratio for kind, ratio in self._ratios.items()}

    def restore(self, saved: dict[str, float]) -> None:
        self._ratios = {int(kind): float(ratio) for kind, ratio in saved.items()}


def _kind(declared: float) -> int:
    return round(2 * log2(max(1.0, declared)))


__all__ = ["Record"]
