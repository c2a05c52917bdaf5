"""Measured load of an engine, and the load that one more program would add."""

from dataclasses import dataclass
from math import exp

_SHORTEST_WINDOW = 10.0  # seconds
_WEIGHT = 0.05  # of a new call


@dataclass(slots=True)
class EngineLoad:
    """Measure how busy an engine is, by decayed averages over about one cycle of its programs.

    Attributes:
        busy: share of time in which a call was at the engine.
        announced: share of time that programs which were admitted since are expected to add.
        cycle: mean seconds from a program's call to its next one, without waiting for admission.
        work: mean seconds of the engine that a call takes.
    """

    busy: float = 0.0
    announced: float = 0.0
    cycle: float = 1.0
    work: float = 0.0
    _calls: int = 0
    _computed: float = 0.0

    def advance(self, seconds: float, computing: bool) -> None:
        """Account for `seconds` in which the engine was `computing`, or idle."""
        fade = exp(-seconds / max(_SHORTEST_WINDOW, self.cycle))
        self.busy = fade * self.busy + (1 - fade) * computing
        self.announced *= fade
        self._computed += seconds * computing

    def observe(self, tool_seconds: float, call_seconds: float) -> None:
        """Learn from a call that ended.

        Args:
            tool_seconds: that its program's tools took before it.
            call_seconds: that it took, queueing at the engine included.
        """
        self._calls += 1
        weight = max(1 / self._calls, _WEIGHT)
        self.work += weight * (self._computed - self.work)
        self.cycle += weight * (tool_seconds + call_seconds - self.cycle)
        self._computed = 0.0

    def expect(self, share: float) -> None:
        """Add to the announced load, until it is measured.

        Args:
            share: of time; negative for a program that is no longer active.
        """
        self.announced = min(1.0, max(0.0, self.announced + share))

    @property
    def measured(self) -> bool:
        """Return True once a call has ended."""
        return self._calls > 0

    @property
    def expected(self) -> float:
        """Return the share of time in which the engine will be busy with the active programs."""
        return self.busy + self.announced

    def with_more(self, recompute: float) -> float:
        """Return the expected share of time with one more program.

        Args:
            recompute: seconds of computing that each of its calls makes necessary elsewhere.
        """
        return self.expected + self.added(recompute)

    def added(self, recompute: float) -> float:
        """Return the share of time that one more program takes (see `with_more`)."""
        return (self.work + recompute) / max(self.cycle, 1e-3)


__all__ = ["EngineLoad"]
