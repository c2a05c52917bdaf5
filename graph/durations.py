"""How long things take, by tool and by what it was asked for, as empirical distributions.

Empirical and not log-normal: on recorded agents a fitted log-normal's 95th percentile covered
only 82-88 % of some tools (research/scheduling.md §2.1). A key is ``tool`` or ``tool:bucket``, the
bucket being a coarse view of the arguments (``bash:pytest``); calls made together are joined by
``+``. A key of which little is known falls back to its tools, these to a declaration, and that to
everything.
"""

from typing import Any

from drawloom.graph.sketch import Sketch

_ENOUGH = 8.0
_KEYS = 256
_SAMPLES = 100
_ALL = "*"


def tools_of(key: str) -> str:
    """A key without what its tools were asked for: ``bash:pytest+read`` is ``bash+read``."""
    return "+".join(sorted({part.partition(":")[0] for part in key.split("+")}))


class Durations:
    """Seconds by key. At most `_KEYS` keys are told apart; after that tools alone are."""

    def __init__(self) -> None:
        self._sketches: dict[str, Sketch] = {}
        self._priors: dict[str, Sketch] = {}

    def expect(self, key: str, seconds: float) -> None:
        """What a declaration says; it counts until there are observations."""
        prior = self._priors[key] = Sketch()
        for value in (0.5 * seconds, seconds, 3 * seconds):
            prior.observe(value)

    def observe(self, key: str, seconds: float) -> None:
        tools = tools_of(key)
        for name in dict.fromkeys((_ALL, tools, key)):
            sketch = self._sketches.get(name)
            if sketch is None:
                if name not in (tools, _ALL) and len(self._sketches) >= _KEYS:
                    continue
                sketch = self._sketches[name] = Sketch()
            sketch.observe(max(0.0, seconds))

    @property
    def keys(self) -> list[str]:
        """What there are observations of."""
        return sorted(self._sketches.keys() - {_ALL})

    def known(self, key: str) -> Sketch | None:
        """What is known of a key, from the narrowest of its views that has enough; None when
        nothing is known at all."""
        own, tools = self._sketches.get(key), tools_of(key)
        wider = self._sketches.get(tools)
        for sketch in (own, wider):
            if sketch is not None and sketch.count >= _ENOUGH:
                return sketch
        prior = self._priors.get(tools)
        some = wider or own
        if prior is None:
            return some or self._sketches.get(_ALL)
        if some is None:
            return prior
        both = Sketch()
        both.merge(prior)
        both.merge(some)
        return both

    def quantile(self, key: str, share: float) -> float | None:
        """The seconds that `share` of the calls do not exceed; None when nothing is known."""
        known = self.known(key)
        return None if known is None else known.quantile(share)

    def chance_within(self, key: str, seconds: float) -> float:
        """The share of the calls of at most `seconds`; 0 when nothing is known."""
        known = self.known(key)
        return 0.0 if known is None else known.share_within(seconds)

    def samples(self, key: str) -> list[float]:
        """The distribution as a hundred sorted seconds, for who wants it so; empty when nothing
        is known."""
        known = self.known(key)
        if known is None:
            return []
        found = (known.quantile((at + 0.5) / _SAMPLES) for at in range(_SAMPLES))
        return [seconds for seconds in found if seconds is not None]

    # --- kept across restarts, and put together -------------------------------------------

    def merge(self, other: "Durations") -> None:
        """Add what was observed elsewhere."""
        for key, sketch in other._sketches.items():
            self._sketches.setdefault(key, Sketch()).merge(sketch)

    def saved(self) -> dict[str, Any]:
        """As JSON; declarations are not part of it, they are made anew."""
        return {key: sketch.saved() for key, sketch in self._sketches.items()}

    def restore(self, saved: dict[str, Any]) -> None:
        """What `saved` kept. Raises `TypeError` or `ValueError` for anything else."""
        if not isinstance(saved, dict):
            raise TypeError(f"no durations: {saved!r}")
        self._sketches = {str(key): Sketch.restore(one) for key, one in saved.items()}


__all__ = ["Durations", "tools_of"]
