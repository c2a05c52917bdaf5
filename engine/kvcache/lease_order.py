"""Order of leases: by expiry, and by value per block when blocks are needed."""

import heapq
from collections.abc import Callable, Iterator

from drawloom.engine.kvcache.entries import IndexEntry
from drawloom.engine.kvcache.records import CachedConversation

_SLACK = 64
Item = tuple[float, int, str]


class LeaseOrder:
    """Order the leases of conversations by expiry and by value per block.

    Both heaps are cleaned lazily: an item is stale once its conversation has another lease or none.

    Args:
        records: the conversations by name, shared with `ConversationLeases`.
    """

    def __init__(self, records: dict[str, CachedConversation]) -> None:
        self._records = records
        self._by_value: list[Item] = []
        self._by_expiry: list[Item] = []
        self._versions = 0

    def add(self, name: str, expires: float, value: float) -> None:
        """Add the lease of a conversation, in place of its last one.

        Args:
            expires: when it ends, in seconds.
            value: seconds that having its leased blocks saves.
        """
        self._versions += 1
        record = self._records[name]
        record.version, record.expires, record.broken = self._versions, expires, 0.0
        if record.leased:
            density = value / record.leased
            self._push(self._by_value, (density, record.version, name))
            self._push(self._by_expiry, (expires, record.version, name))

    def pop_expired(self, now: float) -> Iterator[str]:
        """Yield the conversations whose leases expired, which the caller must end."""
        while self._by_expiry and self._by_expiry[0][0] <= now:
            _, version, name = heapq.heappop(self._by_expiry)
            if self._is_current(name, version) and self._records[name].expires <= now:
                yield name

    def pop_cheapest(self, idle: Callable[[IndexEntry], bool]) -> str | None:
        """Remove and return the lease of least value per block that has an idle block.

        Args:
            idle: tells whether neither a sequence nor a copy holds a block.

        Returns:
            Its conversation, or None if no lease has an idle block.
        """
        busy: list[Item] = []
        found = None
        while self._by_value and found is None:
            item = heapq.heappop(self._by_value)
            _, version, name = item
            if not self._is_current(name, version):
                continue
            record = self._records[name]
            if any(map(idle, record.entries[: record.leased])):
                found = name
            else:
                busy.append(item)  # to break it would free nothing
        for item in busy:
            heapq.heappush(self._by_value, item)
        return found

    def _push(self, heap: list[Item], item: Item) -> None:
        """Add an item to a heap; drop the stale items once it has outgrown the records."""
        if len(heap) > 2 * len(self._records) + _SLACK:
            heap[:] = [old for old in heap if self._is_current(old[2], old[1])]
            heapq.heapify(heap)
        heapq.heappush(heap, item)

    def _is_current(self, name: str, version: int) -> bool:
        """Return whether an item is the present lease of its conversation."""
        record = self._records.get(name)
        return record is not None and record.version == version and record.leased > 0


__all__ = ["LeaseOrder"]
