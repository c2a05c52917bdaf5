"""Host tier of the KV cache: eviction from the device, and copies between the two tiers.

A *spill* writes an evicted block back to host memory before the next step overwrites it. A *save*
copies a block ahead of its eviction, and a *load* brings one back, while steps go on.
"""

from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.entries import BlockLoad, IndexEntry
from drawloom.engine.kvcache.prefix_index import PrefixIndex
from drawloom.engine.sequence import Sequence
from drawloom.engine.stats import CacheCounters


class Offload:
    """Evict blocks of an index, and decide and book the copies between its tiers.

    Attributes:
        spill: write evicted blocks back; set when copying a block both ways costs less than
            computing it again.
    """

    def __init__(self, index: PrefixIndex, counters: CacheCounters) -> None:
        self.index, self.host, self._counters = index, index.host, counters
        self.spill = True
        self._saving: dict[int, tuple[IndexEntry, int]] = {}
        self._loading: dict[int, BlockLoad] = {}
        self._spills: list[tuple[int, int]] = []
        self._saves: list[tuple[int, int]] = []
        self._loads: list[tuple[int, int]] = []

    @property
    def in_flight(self) -> int:
        """Return the number of saves and loads that are not complete."""
        return len(self._saving) + len(self._loading)

    # --- eviction -------------------------------------------------------------------------

    def allocate_unleased(self) -> int:
        """Allocate a device block without breaking a lease; return -1 if that is impossible."""
        while not self.index.pool.free_blocks:
            if not self.evict_lru():
                return -1
        return self.index.pool.allocate()

    def evict_lru(self) -> bool:
        """Evict the least recently used unleased block; return False if there is none."""
        if not self.index.lru:
            return False
        self._counters.evictions += 1
        self.evict(next(iter(self.index.lru.values())))
        return True

    def evict(self, entry: IndexEntry) -> None:
        """Evict a block that nobody holds from the device.

        A block that a conversation uses is spilled, if that is worth it. The block stays indexed
        if host memory has it; otherwise it is removed, with its continuations.
        """
        index = self.index
        assert not index.pool.refcount(entry.block), f"block {entry.block} is held"
        if entry.host_block < 0 and self.spill and entry.users and self.host.count:
            self._spill(entry)
        if entry.host_block < 0:
            index.remove(entry)
        else:
            index.unlease_all(entry)
            index.free_device_block(entry)

    def _spill(self, entry: IndexEntry) -> None:
        """Schedule a copy of a block before the next step overwrites it."""
        self.host.pin(entry)
        block = self._allocate_host()
        self.host.unpin(entry)
        if block >= 0 and not entry.dead:
            self.host.assign(entry, block)
            self._spills.append((entry.block, block))
        elif block >= 0:
            self.host.free(block)

    def _allocate_host(self) -> int:
        """Allocate a block of host memory, evicting the least recently used one if need be.

        Returns:
            The block, or -1 if all are pinned.
        """
        block = self.host.allocate()
        if block >= 0:
            return block
        victim = self.host.victim()
        if victim is None:
            return -1
        if victim.block >= 0:
            self.host.release(victim)
        else:
            self.index.remove(victim)
        return self.host.allocate()

    # --- saves ----------------------------------------------------------------------------

    def save(self, entry: IndexEntry) -> bool:
        """Begin to copy a block to host memory; return whether it is there or on its way."""
        if entry.host_block >= 0 or entry.saving:
            return True
        block = self._allocate_host() if entry.on_device else -1
        if block < 0:
            return False
        if entry.dead:  # removed, with the victim that made room
            self.host.free(block)
            return False
        entry.saving = True
        self.index.pin(entry)
        self._saving[entry.block] = (entry, block)
        self._saves.append((entry.block, block))
        return True

    def finish_save(self, block: int) -> IndexEntry:
        """Book a complete save from a device block; return its entry."""
        entry, host_block = self._saving.pop(block)
        entry.saving = False
        if entry.dead:
            self.host.free(host_block)
        else:
            self.host.assign(entry, host_block)
        self.index.unpin(entry)
        return entry

    def cancel_save(self, block: int) -> IndexEntry:
        """Book a failed save: its host block is freed."""
        entry, host_block = self._saving.pop(block)
        entry.saving = False
        self.host.free(host_block)
        self.index.unpin(entry)
        return entry

    def cancel_spill(self, host_block: int) -> None:
        """Book a failed spill: the block that should be in this host block is removed."""
        entry = self.host.lru.get(host_block)
        if entry is not None:
            self.index.remove(entry)

    # --- loads ----------------------------------------------------------------------------

    def load(
        self, entry: IndexEntry, block: int, seq: Sequence | None, private: bool = False
    ) -> None:
        """Begin to copy an entry from host memory to the device.

        Args:
            block: the target, with one reference: of `seq`, or one that the copy takes over.
            seq: the sequence that is parked until the copy is complete, if any.
            private: the target stays the sequence's own (see `BlockLoad`).
        """
        load = BlockLoad(entry, block, private)
        self.host.pin(entry)
        if seq is not None:
            self.index.pool.add_ref(block)
            self.wait(load, seq)
        if not private:
            entry.block, entry.load = block, load
            self.index.by_block[block] = entry
        self._loading[block] = load
        self._loads.append((entry.host_block, block))

    def wait(self, load: BlockLoad, seq: Sequence) -> None:
        """Park a sequence until a load is complete."""
        load.waiters.append(seq)
        seq.loading += 1

    def finish_load(self, block: int) -> None:
        """Book a complete load into a device block: sequences that waited for it may run."""
        load = self._loading.pop(block)
        entry = load.entry
        self._resume(load)
        if load.private:
            self._drop_private(block)
        else:
            entry.load = None
            self.index.unpin(entry)
        self.host.unpin(entry)
        self.host.touch(entry)

    def cancel_load(self, block: int) -> list[Sequence]:
        """Book a failed load, and remove its entry, so that nobody tries to load it again.

        Returns:
            The sequences that waited for it.
        """
        load = self._loading.pop(block)
        entry = load.entry
        self._resume(load)
        if not load.private:
            entry.load = None
        if not load.private or entry.block < 0:  # else it is on the device and may be in use
            self.index.remove(entry)
        self.host.unpin(entry)
        if load.private:
            self._drop_private(block)
        else:
            self.index.unpin(entry)
        return load.waiters

    def _resume(self, load: BlockLoad) -> None:
        for seq in load.waiters:
            seq.loading -= 1

    def _drop_private(self, block: int) -> None:
        if self.index.pool.drop_ref(block):
            self.index.pool.free(block)

    def take_copies(self) -> Copies:
        """Return the copies decided since the last call, for the runner to carry out."""
        copies = Copies(self._spills, self._saves, self._loads)
        if copies:
            self._spills, self._saves, self._loads = [], [], []
            self._counters.saved_blocks += len(copies.saves) + len(copies.spills)
            self._counters.loaded_blocks += len(copies.loads)
        return copies

    def check(self, held: dict[int, int], roots: set[bytes]) -> None:
        """Assert the invariants of both tiers (for tests).

        Args:
            held: references of sequences by device block.
            roots: keys before the first token.

        Raises:
            AssertionError: if one does not hold.
        """
        held = dict(held)
        for block in [*self._saving, *self._loading]:  # each copy in flight has one reference
            held[block] = held.get(block, 0) + 1
        self.index.check(held, roots)
        reserved = [block for _, block in self._saving.values()]
        pinned = {load.entry.host_block for load in self._loading.values() if load.entry.dead}
        self.host.check(list(self.index.known.values()), reserved, pinned)


__all__ = ["Offload"]
