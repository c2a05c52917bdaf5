"""Correction of declared numbers of calls by earlier declarations."""

from math import log2

_WEIGHT = 0.1  # of a new ratio
_TOLERANCE = 2.0  # a mean error below this factor is noise, and is not corrected


class DeclarationRecord:
    """Compare the calls that programs of one agent declared with those that they made.

    Declarations are grouped by size: two are in one group if they differ by less than a factor of
    about 1.4.
    """

    def __init__(self) -> None:
        self._ratios: dict[int, float] = {}

    def observe(self, declared: float, made: int) -> None:
        """Record a finished program.

        Args:
            declared: LLM calls in all, by the program's last declaration.
            made: LLM calls that it made.
        """
        if declared > 0 and made > 0:
            group, ratio = _group(declared), made / declared
            known = self._ratios.get(group, ratio)
            self._ratios[group] = known + _WEIGHT * (ratio - known)

    def expected(self, declared: float) -> float:
        """Return the calls to expect of a program that declares `declared` calls.

        The declaration itself, unless programs with a similar one made, in the mean, less than half
        or more than twice of it.
        """
        ratio = self._ratios.get(_group(declared), 1.0)
        return declared if 1 / _TOLERANCE <= ratio <= _TOLERANCE else declared * ratio

    def saved(self) -> dict[str, float]:
        """Return the record as JSON."""
        return {str(group): ratio for group, ratio in self._ratios.items()}

    def restore(self, saved: dict[str, float]) -> None:
        """Replace the record by one that `saved` returned."""
        self._ratios = {int(group): float(ratio) for group, ratio in saved.items()}


def _group(declared: float) -> int:
    return round(2 * log2(max(1.0, declared)))


__all__ = ["DeclarationRecord"]
