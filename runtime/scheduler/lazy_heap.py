"""A priority queue of entries that may cease to count."""

import heapq
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_SLACK = 64
Item = TypeVar("Item", bound=tuple[Any, ...])


class Heap(Generic[Item]):
    """Return the least entry that still counts.

    To withdraw an entry, its owner changes what `counts` looks at: the entry is dropped when it
    comes to the top, or when those that no longer count may be most of the heap.

    Args:
        counts: returns whether an entry is still valid.
    """

    def __init__(self, counts: Callable[[Item], bool]) -> None:
        self._counts, self._items, self._most = counts, list[Item](), _SLACK

    def push(self, item: Item) -> None:
        """Add an entry."""
        heapq.heappush(self._items, item)
        if len(self._items) > self._most:
            self._items = [one for one in self._items if self._counts(one)]
            heapq.heapify(self._items)
            self._most = _SLACK + 2 * len(self._items)

    def pop(self) -> None:
        """Drop the least entry."""
        heapq.heappop(self._items)

    @property
    def least(self) -> Item | None:
        """Return the least entry that counts."""
        while self._items and not self._counts(self._items[0]):
            heapq.heappop(self._items)
        return self._items[0] if self._items else None


__all__ = ["Heap"]
