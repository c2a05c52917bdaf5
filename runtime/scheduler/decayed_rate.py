"""Recent rate of an event."""

import math
from dataclasses import dataclass

_TIME_CONSTANT = 30.0  # seconds


@dataclass(slots=True)
class DecayedRate:
    """Measure events per second; each counts less as it gets older.

    Attributes:
        count: decayed number of events, as of the last one.
        total: events so far.
        first: time of the first event.
        last: time of the last event.
    """

    count: float = 0.0
    total: int = 0
    first: float = 0.0
    last: float = 0.0

    def record(self, now: float) -> None:
        """Record an event."""
        if not self.total:
            self.first = self.last = now
        self.count = self._decayed(now) + 1.0
        self.total += 1
        self.last = max(self.last, now)

    def per_second(self, now: float) -> float:
        """Return the recent rate; it is scaled up while the first event is young."""
        seen = 1.0 - math.exp(-max(1.0, now - self.first) / _TIME_CONSTANT)
        return self._decayed(now) / (_TIME_CONSTANT * seen)

    def _decayed(self, now: float) -> float:
        return self.count * math.exp(-max(0.0, now - self.last) / _TIME_CONSTANT)


__all__ = ["DecayedRate"]
