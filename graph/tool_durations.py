"""Distributions of tool durations, by tool and by a coarse view of its arguments.

They are empirical and not log-normal: on recorded agents, a fitted log-normal's 95th percentile
covered only 82-88 % of the calls of some tools. A key is ``tool`` or ``tool:bucket``, where the
bucket is a coarse view of the arguments (``bash:pytest``); calls that are made together are joined
by ``+``. A key with few observations falls back to its tools, these to a declaration, and that to
all observations. Clients choose the names, so each kind of key is bounded: new ones beyond the
bound are counted together, as ``other``.
"""

from collections.abc import Iterable
from typing import Any

from drawloom.graph.quantile_sketch import QuantileSketch

_ENOUGH = 8.0  # observations, before a view is preferred to a wider one
_BOUNDS = {"tool": 256, "set": 128, "bucket": 256}  # distinct names of each kind
_LARGEST_SET = 8  # tools; all larger sets count as one
_SAMPLES = 100
_ALL, OTHER, OTHERS = "*", "other", "others"  # all calls; tools, and sets, beyond the bound


def without_buckets(key: str) -> str:
    """Return the tools of a key: ``bash+read`` of ``bash:pytest+read``."""
    if "+" not in key:
        return key.partition(":")[0]
    return "+".join(sorted({part.partition(":")[0] for part in key.split("+")}))


def tools_key(calls: Iterable[str]) -> str:
    """Return the key of tool calls that were made together."""
    different = sorted(set(calls))
    return "+".join(different) if len(different) <= _LARGEST_SET else OTHERS


class ToolDurations:
    """Keep the seconds of tool calls by key.

    At most 256 tools, 128 sets of tools and 256 buckets are distinguished.
    """

    def __init__(self) -> None:
        self._sketches: dict[str, QuantileSketch] = {}
        self._room = dict(_BOUNDS)
        self._priors: dict[str, QuantileSketch] = {}

    def declare(self, key: str, seconds: float) -> None:
        """Declare the seconds that a tool takes, for as long as there are few observations."""
        prior = self._priors[key] = QuantileSketch()
        for value in (0.5 * seconds, seconds, 3 * seconds):
            prior.observe(value)

    def observe(self, key: str, seconds: float) -> None:
        """Record the seconds of a call, for its key, for its tools and for all tools."""
        seconds, tools = max(0.0, seconds), without_buckets(key)
        names = (_ALL, tools) if tools == key else (_ALL, tools, key)
        for name in names:
            sketch = self._sketches.get(name) or self._new(name)
            if sketch is not None:
                sketch.observe(seconds)

    def _new(self, name: str) -> QuantileSketch | None:
        """Return the sketch for a new name.

        Beyond the bound, that is the one of all others of its kind; None for a bucket, whose tool
        stands for it.
        """
        kind = _kind(name)
        if kind is not None:
            if self._room[kind] <= 0:
                return None if kind == "bucket" else self._at(_others(name))
            self._room[kind] -= 1
        return self._at(name)

    def _at(self, name: str) -> QuantileSketch:
        return self._sketches.setdefault(name, QuantileSketch())

    @property
    def keys(self) -> list[str]:
        """Return the keys with observations."""
        return sorted(self._sketches.keys() - {_ALL})

    def distribution(self, key: str) -> QuantileSketch | None:
        """Return the distribution for a key, from the narrowest view that has enough observations.

        Returns:
            None when nothing is known at all.
        """
        own, tools = self._sketches.get(key), without_buckets(key)
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
        both = QuantileSketch()
        both.merge(prior)
        both.merge(some)
        return both

    def quantile(self, key: str, share: float) -> float | None:
        """Return the seconds that `share` of the calls do not exceed; None if nothing is known."""
        known = self.distribution(key)
        return None if known is None else known.quantile(share)

    def share_within(self, key: str, seconds: float) -> float:
        """Return the share of the calls that take at most `seconds`; 0 when nothing is known."""
        known = self.distribution(key)
        return 0.0 if known is None else known.share_within(seconds)

    def samples(self, key: str) -> list[float]:
        """Return the distribution as a hundred sorted seconds; empty when nothing is known."""
        known = self.distribution(key)
        if known is None:
            return []
        found = (known.quantile((at + 0.5) / _SAMPLES) for at in range(_SAMPLES))
        return [seconds for seconds in found if seconds is not None]

    # --- kept across restarts, and put together -------------------------------------------

    def merge(self, other: "ToolDurations") -> None:
        """Add the observations of another object."""
        for key, sketch in other._sketches.items():
            mine = self._sketches.get(key) or self._new(key)
            if mine is not None:
                mine.merge(sketch)

    def saved(self) -> dict[str, Any]:
        """Return all observations as JSON; declarations are left out, as they are declared anew."""
        return {key: sketch.saved() for key, sketch in self._sketches.items()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Replace the observations by those that `saved` returned.

        Raises:
            TypeError, ValueError: `saved` is something else.
        """
        if not isinstance(saved, dict):
            raise TypeError(f"durations are a dict of sketches by key, not {saved!r}")
        read = ToolDurations()
        for key, one in saved.items():
            sketch = read._new(str(key))
            if sketch is not None:
                sketch.merge(QuantileSketch.restore(one))
        self._sketches, self._room = read._sketches, read._room


def _kind(name: str) -> str | None:
    """Return the bound that a name counts against; None for a name that stands for others."""
    if name in (_ALL, OTHER, OTHERS):
        return None
    if without_buckets(name) != name:
        return "bucket"
    return "set" if "+" in name else "tool"


def _others(name: str) -> str:
    return OTHERS if "+" in name else OTHER


__all__ = ["OTHER", "ToolDurations", "tools_key", "without_buckets"]
