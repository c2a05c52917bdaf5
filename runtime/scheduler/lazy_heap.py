"""Priority queue whose entries may become stale."""

import heapq
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_SLACK = 64
Item = TypeVar("Item", bound=tuple[Any, ...])


class LazyHeap(Generic[Item]):
    """Return the least valid entry.

    To withdraw an entry, its owner changes what `is_valid` looks at. A stale entry is dropped when
    it comes to the top, or when stale ones may be most of the heap.

    Args:
        is_valid: returns False for a stale entry.
    """

    __slots__ = ("_is_valid", "_items", "_limit")

    def __init__(self, is_valid: Callable[[Item], bool]) -> None:
        self._is_valid, self._items, self._limit = is_valid, list[Item](), _SLACK

    def __len__(self) -> int:
        """Return the number of entries, stale ones included."""
        return len(self._items)

    def push(self, item: Item) -> None:
        """Add an entry."""
        heapq.heappush(self._items, item)
        if len(self._items) > self._limit:
            self._items = [one for one in self._items if self._is_valid(one)]
            heapq.heapify(self._items)
            self._limit = _SLACK + 2 * len(self._items)

    def pop(self) -> None:
        """Drop the least entry."""
        heapq.heappop(self._items)

    @property
    def top(self) -> Item | None:
        """Return the least valid entry; None if there is none."""
        while self._items and not self._is_valid(self._items[0]):
            heapq.heappop(self._items)
        return self._items[0] if self._items else None


__all__ = ["LazyHeap"]
