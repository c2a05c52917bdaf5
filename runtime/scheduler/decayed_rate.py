"""How often something happens lately."""

import math
from dataclasses import dataclass

_SECONDS = 30.0


@dataclass(slots=True)
class Rate:
    """Happenings per second, each counting less as it gets older (time constant 30 s)."""

    count: float = 0.0
    total: int = 0
    first: float = 0.0
    last: float = 0.0

    def note(self, now: float) -> None:
        """It happened."""
        if not self.total:
            self.first = self.last = now
        self.count = self._faded(now) + 1.0
        self.total += 1
        self.last = max(self.last, now)

    def per_second(self, now: float) -> float:
        """Lately; of the time since the first when that is shorter."""
        seen = 1.0 - math.exp(-max(1.0, now - self.first) / _SECONDS)
        return self._faded(now) / (_SECONDS * seen)

    def _faded(self, now: float) -> float:
        return self.count * math.exp(-max(0.0, now - self.last) / _SECONDS)


__all__ = ["Rate"]
