"""Index of the blocks with known content, by the hash of all tokens up to their end.

Any sequence with the same prefix finds a block, whichever program computed it. An indexed block is
on the device, in host memory, or in both. On the device it is *held* by sequences or copies in
flight, *leased*, or merely kept, least recently used first.

A block is of use only if all blocks before it are there. So removing a block removes its
continuations, and no chain has a block whose predecessor is in neither tier. Under a sliding window
a block is of use without its predecessors, and each one is removed by itself.
"""

from collections import OrderedDict

from drawloom.engine.kvcache.block_pool import BlockPool
from drawloom.engine.kvcache.entries import IndexEntry
from drawloom.engine.kvcache.host_blocks import HostBlocks


class PrefixIndex:
    """Index blocks by key and by place, in two tiers. Pure bookkeeping.

    Args:
        blocks: blocks of the device.
        host_blocks: blocks of host memory.
        windowed: tokens attend to a sliding window.

    Attributes:
        known: entries by key; `children` are the entries that follow a key.
        by_block: entries by device block, those of removed entries that are still held included.
        lru: unleased entries that nobody holds, the least recently used first.
        leased: number of leased blocks; `leased_idle` of them are held by nobody.
    """

    def __init__(self, blocks: int, host_blocks: int = 0, windowed: bool = False) -> None:
        self.pool = BlockPool(blocks)
        self.host = HostBlocks(host_blocks)
        self.known: dict[bytes, IndexEntry] = {}
        self.children: dict[bytes, dict[bytes, IndexEntry]] = {}
        self.by_block: dict[int, IndexEntry] = {}
        self.lru: OrderedDict[int, IndexEntry] = OrderedDict()
        self.leased = 0
        self.leased_idle = 0
        self.windowed = windowed

    @property
    def available(self) -> int:
        """Return how many blocks a sequence could have now: the free and the evictable ones."""
        return self.pool.free_blocks + len(self.lru) + self.leased_idle

    # --- users and leases -----------------------------------------------------------------

    def publish(self, parent: bytes, key: bytes, tokens: tuple[int, ...], block: int) -> IndexEntry:
        """Index a computed block.

        Args:
            parent: key of the block before it.
            key: its own key.
            tokens: its tokens.
            block: the device block.

        Returns:
            Its entry. The entry has another block if the same tokens were computed before.
        """
        entry = self.known.get(key)
        if entry is None:
            entry = IndexEntry(key, parent, tokens)
            self.known[key] = entry
            self.children.setdefault(parent, {})[key] = entry
        if entry.block < 0:
            entry.block = block
            self.by_block[block] = entry
        return entry

    def add_user(self, entry: IndexEntry, conversation: str) -> None:
        """Note that a conversation uses a block."""
        if conversation not in entry.users:
            entry.shared = entry.shared or bool(entry.users)
            entry.users.add(conversation)

    def pin(self, entry: IndexEntry) -> None:
        """Add a reference to an entry's device block, so that it is not evicted."""
        if not self.pool.refcount(entry.block):
            if entry.leases:
                self.leased_idle -= 1
            else:
                self.lru.pop(entry.block, None)
        self.pool.add_ref(entry.block)

    def unpin(self, entry: IndexEntry) -> None:
        """Remove a reference; with the last one the block becomes evictable."""
        block = entry.block
        if not self.pool.drop_ref(block):
            return
        if entry.dead:
            self.free_device_block(entry)
        elif entry.leases:
            self.leased_idle += 1
        else:
            self.lru[block] = entry

    def unpin_block(self, block: int) -> None:
        """Remove a reference to a device block; without an entry it is freed with the last one."""
        entry = self.by_block.get(block)
        if entry is not None:
            self.unpin(entry)
        elif self.pool.drop_ref(block):
            self.pool.free(block)

    def lease(self, entry: IndexEntry, conversation: str) -> None:
        """Lease a block to a conversation: it is evicted after all unleased ones."""
        if not entry.leases:
            self.leased += 1
            if not self.pool.refcount(entry.block):
                self.leased_idle += 1
                self.lru.pop(entry.block, None)
        entry.leases.add(conversation)

    def unlease(self, entry: IndexEntry, conversation: str, front: bool = False) -> None:
        """End a conversation's lease on a block, if it has one.

        Args:
            front: the block is evicted next; else it counts as just used.
        """
        if conversation not in entry.leases:
            return
        entry.leases.discard(conversation)
        if entry.leases:
            return
        self.leased -= 1
        if not self.pool.refcount(entry.block):
            self.leased_idle -= 1
            self.lru[entry.block] = entry
            if front:
                self.lru.move_to_end(entry.block, last=False)

    def unlease_all(self, entry: IndexEntry) -> None:
        """End all leases on a block."""
        for conversation in list(entry.leases):
            self.unlease(entry, conversation)

    # --- removal --------------------------------------------------------------------------

    def evict_next(self, entry: IndexEntry, host: bool = True) -> None:
        """Make a kept block the next to be evicted.

        Args:
            host: in host memory, too.
        """
        if entry.block in self.lru:
            self.lru.move_to_end(entry.block, last=False)
        if host:
            self.host.evict_next(entry)

    def remove(self, entry: IndexEntry) -> None:
        """Remove a block and its continuations from the index; copies in flight still end."""
        if entry.dead:
            return
        found = [entry]
        if not self.windowed:
            for one in found:  # grows meanwhile: a long context is deeper than Python may recurse
                found += self.children.get(one.key, {}).values()
        for one in reversed(found):
            self._remove(one)

    def _remove(self, entry: IndexEntry) -> None:
        self.unlease_all(entry)
        entry.dead = True
        del self.known[entry.key]
        siblings = self.children[entry.parent]
        del siblings[entry.key]
        if not siblings:
            del self.children[entry.parent]
        if entry.block >= 0 and not self.pool.refcount(entry.block):
            self.free_device_block(entry)
        if entry.host_block >= 0:
            self.host.unlist(entry)

    def remove_blocks(self, blocks: list[int]) -> None:
        """Remove the entries of device blocks that were not written as they should have been."""
        for block in blocks:
            if block in self.by_block:
                self.remove(self.by_block[block])

    def remove_unused(self, entry: IndexEntry) -> None:
        """Remove a block that another one supersedes, unless it is in use.

        The unfinished last block of each turn would fill host memory otherwise.
        """
        held = entry.block >= 0 and self.pool.refcount(entry.block)
        if not (held or entry.users or entry.host_pins or entry.saving or entry.load):
            self.remove(entry)

    def free_device_block(self, entry: IndexEntry) -> None:
        """Free the device block of an entry, to which there is no reference."""
        self.lru.pop(entry.block, None)
        self.pool.free(entry.block)
        del self.by_block[entry.block]
        entry.block = -1

    def check(self, held: dict[int, int], roots: set[bytes]) -> None:
        """Assert the invariants of the device's blocks and of the chains (for tests).

        Args:
            held: references by device block, of sequences and of copies in flight.
            roots: keys before the first token.

        Raises:
            AssertionError: if one does not hold.
        """
        for block in range(self.pool.count):
            assert self.pool.refcount(block) == held.get(block, 0), f"block {block}: wrong count"
        kept = set(self.lru)
        alive = {b: e for b, e in self.by_block.items() if not e.dead}
        idle_leased = {b for b, e in alive.items() if e.leases and not self.pool.refcount(b)}
        assert not kept & idle_leased and not kept & held.keys()
        assert self.pool.free_blocks + len(kept) + len(idle_leased) + len(held) == self.pool.count
        assert kept | idle_leased == {b for b in alive if not self.pool.refcount(b)}
        assert self.leased_idle == len(idle_leased)
        assert self.leased == sum(1 for e in self.known.values() if e.leases)
        for entry in self.known.values():
            assert entry.block >= 0 or entry.host_block >= 0, "known, but nowhere"
            assert not entry.leases or entry.block >= 0, "leased, but not on the device"
            assert entry.block < 0 or self.by_block[entry.block] is entry
            if not self.windowed:
                assert entry.parent in self.known or entry.parent in roots, "a chain lost a block"


__all__ = ["PrefixIndex"]
