"""Copies of KV blocks between the device and host memory."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Copies:
    """List copies between the tiers as ``(source, target)``, in the order of their decision.

    Spills come first and must be complete before the next step writes to the device; saves and
    loads may complete later. Of several spills to one target the last one decided counts.
    """

    spills: list[tuple[int, int]]
    saves: list[tuple[int, int]]
    loads: list[tuple[int, int]]

    def __bool__(self) -> bool:
        return bool(self.spills or self.saves or self.loads)


def runs(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Merge copies of neighbouring blocks.

    Carrying out the result, in any order, has the effect of carrying out `pairs` one by one: of
    several copies to one target only the last is kept. Sources and targets are blocks of two
    different memories.

    Args:
        pairs: copies ``(source, target)``.

    Returns:
        Copies ``(source, target, count)``.
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
