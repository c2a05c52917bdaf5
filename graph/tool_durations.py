"""How long things take, by tool and by what it was asked for, as empirical distributions.

Empirical and not log-normal: on recorded agents a fitted log-normal's 95th percentile covered
only 82-88 % of some tools (research/scheduling.md §2.1). A key is ``tool`` or ``tool:bucket``, the
bucket being a coarse view of the arguments (``bash:pytest``); calls made together are joined by
``+``. A key of which little is known falls back to its tools, these to a declaration, and that to
everything. Clients choose the names, so each kind of key is bounded: what is new beyond that is
counted together, as ``other``.
"""

from collections.abc import Iterable
from typing import Any

from drawloom.graph.quantile_sketch import Sketch

_ENOUGH = 8.0
_BOUNDS = {"tool": 256, "set": 128, "bucket": 256}  # names of each kind that are told apart
_TOGETHER = 8  # tools in a set; more of them are like any other crowd
_SAMPLES = 100
_ALL, OTHER, OTHERS = "*", "other", "others"  # everything; other tools; other sets of tools


def tools_of(key: str) -> str:
    """Return a key without what its tools were asked for: ``bash:pytest+read`` is ``bash+read``."""
    if "+" not in key:
        return key.partition(":")[0]
    return "+".join(sorted({part.partition(":")[0] for part in key.split("+")}))


def key_of(calls: Iterable[str]) -> str:
    """Return the key of tool calls that were made together."""
    different = sorted(set(calls))
    return "+".join(different) if len(different) <= _TOGETHER else OTHERS


class Durations:
    """Seconds by key: by tool (at most 256), set of tools (128), tool and bucket (256)."""

    def __init__(self) -> None:
        self._sketches: dict[str, Sketch] = {}
        self._room = dict(_BOUNDS)
        self._priors: dict[str, Sketch] = {}

    def expect(self, key: str, seconds: float) -> None:
        """Declare how long a tool takes; it counts until there are observations."""
        prior = self._priors[key] = Sketch()
        for value in (0.5 * seconds, seconds, 3 * seconds):
            prior.observe(value)

    def observe(self, key: str, seconds: float) -> None:
        """Count a call, for its key, its tools and everything."""
        seconds, tools = max(0.0, seconds), tools_of(key)
        names = (_ALL, tools) if tools == key else (_ALL, tools, key)
        for name in names:
            sketch = self._sketches.get(name) or self._new(name)
            if sketch is not None:
                sketch.observe(seconds)

    def _new(self, name: str) -> Sketch | None:
        """Return a new sketch; beyond the bound that of all others of its kind, or none for a
        bucket, which its tool stands for."""
        kind = _kind(name)
        if kind is not None:
            if self._room[kind] <= 0:
                return None if kind == "bucket" else self._at(_others(name))
            self._room[kind] -= 1
        return self._at(name)

    def _at(self, name: str) -> Sketch:
        return self._sketches.setdefault(name, Sketch())

    @property
    def keys(self) -> list[str]:
        """Return what there are observations of."""
        return sorted(self._sketches.keys() - {_ALL})

    def known(self, key: str) -> Sketch | None:
        """Return what is known of a key, from the narrowest of its views that has enough; None
        when nothing is known at all."""
        own, tools = self._sketches.get(key), tools_of(key)
        wider = self._sketches.get(tools) or self._sketches.get(_others(tools))
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
        """Return the seconds that `share` of the calls do not exceed; None if nothing is known."""
        known = self.known(key)
        return None if known is None else known.quantile(share)

    def chance_within(self, key: str, seconds: float) -> float:
        """Return the share of the calls of at most `seconds`; 0 when nothing is known."""
        known = self.known(key)
        return 0.0 if known is None else known.share_within(seconds)

    def samples(self, key: str) -> list[float]:
        """Return the distribution as a hundred sorted seconds, for who wants it so; empty when
        nothing is known."""
        known = self.known(key)
        if known is None:
            return []
        found = (known.quantile((at + 0.5) / _SAMPLES) for at in range(_SAMPLES))
        return [seconds for seconds in found if seconds is not None]

    # --- kept across restarts, and put together -------------------------------------------

    def merge(self, other: "Durations") -> None:
        """Add what was observed elsewhere."""
        for key, sketch in other._sketches.items():
            mine = self._sketches.get(key) or self._new(key)
            if mine is not None:
                mine.merge(sketch)

    def saved(self) -> dict[str, Any]:
        """Return all observations as JSON; declarations are not part of it, they are made anew."""
        return {key: sketch.saved() for key, sketch in self._sketches.items()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Read what `saved` kept. Raises `TypeError` or `ValueError` for anything else."""
        if not isinstance(saved, dict):
            raise TypeError(f"no durations: {saved!r}")
        read = Durations()
        for key, one in saved.items():
            sketch = read._new(str(key))
            if sketch is not None:
                sketch.merge(Sketch.restore(one))
        self._sketches, self._room = read._sketches, read._room


def _kind(name: str) -> str | None:
    """Return which bound a name falls under; None for what stands for others already."""
    if name in (_ALL, OTHER, OTHERS):
        return None
    if tools_of(name) != name:
        return "bucket"
    return "set" if "+" in name else "tool"


def _others(name: str) -> str:
    return OTHERS if "+" in name else OTHER


__all__ = ["OTHER", "Durations", "key_of", "tools_of"]
