"""How busy an engine is, and what one more program would add."""

from dataclasses import dataclass
from math import exp

_LEAST_SECONDS = 10.0
_LEARN = 0.05


@dataclass(slots=True)
class Load:
    """Measured load of an engine: faded averages, over a cycle of its programs.

    Attributes:
        busy: the share of time in which a call was at the engine.
        coming: what programs that were admitted since are expected to add to that.
        cycle: mean seconds from one call of a program to its next, less those that it was held.
        work: mean seconds of the engine that a call takes.
    """

    busy: float = 0.0
    coming: float = 0.0
    cycle: float = 1.0
    work: float = 0.0
    _calls: int = 0
    _computed: float = 0.0

    def pass_time(self, seconds: float, computing: bool) -> None:
        """Count `seconds` in which the engine was `computing`, or idle."""
        fade = exp(-seconds / max(_LEAST_SECONDS, self.cycle))
        self.busy = fade * self.busy + (1 - fade) * computing
        self.coming *= fade
        self._computed += seconds * computing

    def observe(self, waited: float, call: float) -> None:
        """Learn from a call that took `call` seconds, `waited` seconds after its program's call
        before it had ended."""
        self._calls += 1
        weight = max(1 / self._calls, _LEARN)
        self.work += weight * (self._computed - self.work)
        self.cycle += weight * (waited + call - self.cycle)
        self._computed = 0.0

    def expect(self, share: float) -> None:
        """Count a program that was admitted and takes `share` of the time, or less than nothing
        for one that does no longer, until it is measured."""
        self.coming = min(1.0, max(0.0, self.coming + share))

    @property
    def measured(self) -> bool:
        """Whether a call has ended."""
        return self._calls > 0

    @property
    def expected(self) -> float:
        """The share of time in which the engine will be busy with the programs that run."""
        return self.busy + self.coming

    def with_more(self, again: float) -> float:
        """Return the share of time that the engine would be busy with one more program, whose
        every call makes `again` more seconds of computing necessary."""
        return self.expected + self.added(again)

    def added(self, again: float) -> float:
        """Return the share of time that such a program takes."""
        return (self.work + again) / max(self.cycle, 1e-3)


__all__ = ["Load"]
