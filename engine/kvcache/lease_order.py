"""The order in which leases end: by their time, and by value where there is no room left."""

import heapq
from collections.abc import Callable, Iterator

from drawloom.engine.kvcache.entries import Entry
from drawloom.engine.kvcache.records import CachedConversation

_SLACK = 64
Item = tuple[float, int, str]


class LeaseOrder:
    """Keeps the leases of conversations by expiry and by value per block.

    Args:
        records: the conversations by name; a lease ends with the record's version, or with it.
    """

    def __init__(self, records: dict[str, CachedConversation]) -> None:
        self._records = records
        self._by_value: list[Item] = []
        self._by_expiry: list[Item] = []
        self._versions = 0

    def add(self, name: str, expires: float, value: float) -> None:
        """Let a conversation's leased blocks be kept until `expires`, in place of its last lease.
        `value` is the seconds that having them saves."""
        self._versions += 1
        record = self._records[name]
        record.version, record.expires, record.broken = self._versions, expires, 0.0
        if record.leased:
            density = value / record.leased
            self._push(self._by_value, (density, record.version, name))
            self._push(self._by_expiry, (expires, record.version, name))

    def expired(self, now: float) -> Iterator[str]:
        """Yield the conversations whose lease's time is over, each of which is to end it."""
        while self._by_expiry and self._by_expiry[0][0] <= now:
            _, version, name = heapq.heappop(self._by_expiry)
            if self._stands(name, version) and self._records[name].expires <= now:
                yield name

    def cheapest(self, idle: Callable[[Entry], bool]) -> str | None:
        """Take the lease of least value per block that has an idle block; None if none does.

        Args:
            idle: tells whether neither a sequence nor a copy holds a block.
        """
        busy: list[Item] = []
        found = None
        while self._by_value and found is None:
            item = heapq.heappop(self._by_value)
            _, version, name = item
            if not self._stands(name, version):
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
        """Add to a heap. Leases that were replaced leave it when it has outgrown the records."""
        if len(heap) > 2 * len(self._records) + _SLACK:
            heap[:] = [old for old in heap if self._stands(old[2], old[1])]
            heapq.heapify(heap)
        heapq.heappush(heap, item)

    def _stands(self, name: str, version: int) -> bool:
        """Return whether this is a conversation's lease still."""
        record = self._records.get(name)
        return record is not None and record.version == version and record.leased > 0


__all__ = ["LeaseOrder"]
