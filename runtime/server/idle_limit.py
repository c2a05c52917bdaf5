"""Idle limit of nameless programs: when a client that stays away is taken for gone.

A nameless program is over when it has been idle for `_FACTOR` times the 99th percentile of the idle
times after which clients returned.
"""

from drawloom.graph.quantile_sketch import QuantileSketch

_FACTOR, _MIN_RETURNS = 4.0, 8
"""Factor on the usual idle time, which is known after this many returns."""
_MIN_SECONDS, _DEFAULT_SECONDS = 10.0, 30.0
"""The least limit, and the limit before `_MIN_RETURNS` returns."""


class IdleLimit:
    """Learn an idle limit from the idle times after which clients returned."""

    def __init__(self) -> None:
        self._returns = QuantileSketch()

    def observe(self, seconds: float) -> None:
        """Record that a client returned after some idle time."""
        self._returns.observe(seconds)

    @property
    def seconds(self) -> float:
        """Return the idle time after which a program is over, in seconds."""
        usual = self._returns.quantile(0.99)
        if usual is None or self._returns.count < _MIN_RETURNS:
            return _DEFAULT_SECONDS
        return max(_MIN_SECONDS, _FACTOR * usual)


__all__ = ["IdleLimit"]
