"""Copies of KV blocks between the device and host memory, and the order they are made in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies between the tiers, as ``(from, to)``, in the order in which they were decided.

    Spills come first and must be complete before a block is written again; saves and loads may
    take their time. A place may be written by several spills: the one that was decided last holds.
    """

    spills: list[tuple[int, int]]
    saves: list[tuple[int, int]]
    loads: list[tuple[int, int]]

    def __bool__(self) -> bool:
        return bool(self.spills or self.saves or self.loads)


def runs(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Merge copies ``(from, to)`` of neighbours into ``(from, to, count)``.

    Carrying out the result, in any order, has the effect of carrying out `pairs` one by one: of
    several copies to one place only the last is kept, so that sorting cannot change which one
    holds. Sources and targets are places of two different memories.
    """
    last = {target: source for source, target in pairs}
    merged: list[tuple[int, int, int]] = []
    for source, target in sorted((source, target) for target, source in last.items()):
        if merged:
            start, at, count = merged[-1]
            if source == start + count and target == at + count:
                merged[-1] = (start, at, count + 1)
                continue
        merged.append((source, target, 1))
    return merged


__all__ = ["Copies", "runs"]
