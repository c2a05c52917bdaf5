"""Allocator of KV blocks in host memory, least recently used first."""

from collections import OrderedDict

from drawloom.engine.kvcache.entries import IndexEntry


class HostBlocks:
    """Allocate `count` blocks of host memory and order their entries by last use.

    Attributes:
        lru: entries by host block, the least recently used first.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.lru: OrderedDict[int, IndexEntry] = OrderedDict()
        self._free = list(range(count - 1, -1, -1))

    @property
    def used(self) -> int:
        """Return the number of allocated blocks."""
        return self.count - len(self._free)

    def allocate(self) -> int:
        """Allocate a block; return -1 if none is free."""
        return self._free.pop() if self._free else -1

    def free(self, block: int) -> None:
        """Free a block that no entry has."""
        self._free.append(block)

    def assign(self, entry: IndexEntry, block: int) -> None:
        """Record that an entry's content is in this block."""
        entry.host_block = block
        self.lru[block] = entry

    def release(self, entry: IndexEntry) -> None:
        """Free the block of an entry."""
        self.lru.pop(entry.host_block, None)
        self._free.append(entry.host_block)
        entry.host_block = -1

    def unlist(self, entry: IndexEntry) -> None:
        """Take an entry out of the order of eviction; its block is freed once it is unpinned."""
        self.lru.pop(entry.host_block)
        if not entry.host_pins:
            self.release(entry)

    def pin(self, entry: IndexEntry) -> None:
        """Keep an entry's host block until it is unpinned."""
        entry.host_pins += 1

    def unpin(self, entry: IndexEntry) -> None:
        """Undo one `pin`; the host block of a removed entry is freed with the last one."""
        entry.host_pins -= 1
        if entry.dead and not entry.host_pins and entry.host_block >= 0:
            self.release(entry)

    def touch(self, entry: IndexEntry) -> None:
        """Make an entry the most recently used one."""
        if entry.host_block in self.lru:
            self.lru.move_to_end(entry.host_block)

    def evict_next(self, entry: IndexEntry) -> None:
        """Make an entry the first to be evicted."""
        if entry.host_block in self.lru:
            self.lru.move_to_end(entry.host_block, last=False)

    def victim(self) -> IndexEntry | None:
        """Return the least recently used entry that is not pinned."""
        return next((entry for entry in self.lru.values() if not entry.host_pins), None)

    def check(self, known: list[IndexEntry], reserved: list[int], pinned: set[int]) -> None:
        """Assert that every block is accounted for (for tests).

        Args:
            known: all entries of the index.
            reserved: blocks that saves in flight will fill.
            pinned: blocks of removed entries that are still being loaded.

        Raises:
            AssertionError: if a block is lost or used twice.
        """
        blocks = [entry.host_block for entry in known if entry.host_block >= 0]
        assert len(blocks) == len(set(blocks)) and set(blocks) == set(self.lru)
        assert len(self._free) + len(blocks) + len(reserved) + len(pinned) == self.count


__all__ = ["HostBlocks"]
