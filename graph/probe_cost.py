"""What it costs to look at programs before it is decided which of them are gone on with."""

from collections import deque

import numpy as np

_ENOUGH = 4  # programs that have shown how large they are


class Look:
    """When programs of one agent showed how large they are: by the branches that they began, or by
    what they declared anew. Before that, all of them look alike.

    Attributes:
        calls: LLM calls until they do, at the median; 0 while too few have.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float, float]] = deque(maxlen=128)
        self._costs: dict[float, float] = {}
        self.calls = 0

    def observe(self, calls: int, seconds: float, size: float) -> None:
        """A program ended that had made so many calls, with so many seconds of service, when it
        showed how large it was: `size` times the `usual` that `cost` is asked with. One that never
        did has made 0 calls until then."""
        self._seen.append((calls, seconds, size))
        self._costs.clear()
        shown = sorted(calls for calls, _, _ in self._seen if calls)
        self.calls = shown[len(shown) // 2] if len(shown) >= _ENOUGH else 0

    def cost(self, usual: float) -> float | None:
        """Seconds of service for each completion, if all are looked at and the largest of them are
        not gone on with: the inverse of a Gittins index whose stopping rule sees what was shown
        (Gittins 1979; Weitzman's boxes, 1979). `usual` are the seconds that they are expected to
        come to. None while too few have shown anything.
        """
        if not self.calls:
            return None
        if usual not in self._costs:
            self._costs[usual] = self._cost(usual)
        return self._costs[usual]

    def _cost(self, usual: float) -> float:
        calls, seconds, sizes = np.array(self._seen).T
        total = sizes * usual
        before = np.where(calls > 0, np.minimum(seconds, total), total)
        left = np.sort(total - before)
        spent = before.sum() + np.cumsum(left)  # by all until they show it, by so many to the end
        return float(np.min(spent / np.arange(1, len(left) + 1)))

    def saved(self) -> list[tuple[int, float, float]]:
        return list(self._seen)

    def restore(self, saved: list[tuple[int, float, float]]) -> None:
        for calls, seconds, size in saved:
            self.observe(int(calls), float(seconds), float(size))


__all__ = ["Look"]
