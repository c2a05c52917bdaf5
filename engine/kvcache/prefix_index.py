"""Which blocks are known, and in which tier each of them is.

Every full block that was computed is known by a chained hash of its tokens, so any sequence with
the same beginning finds it, whichever program computed it. A known block is on the device, in
host memory, or in both. Blocks on the device are *held* by sequences (or by a copy in flight),
*leased*, or merely kept, least recently used first.

A block is only of use if all before it are there, so whoever forgets one forgets what continues
it: no chain has a block whose predecessor is in neither tier. Under a sliding window that does
not hold: a block is of use to whoever attends to it, and each is forgotten on its own.
"""

from collections import OrderedDict

from drawloom.engine.kvcache.block_pool import BlockPool
from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.entries import Entry, Load
from drawloom.engine.sequence import Sequence


class BlockIndex:
    """Entries by key and by place, in two tiers. Pure bookkeeping.

    `spill` says whether copying a block out and back costs less than computing it again, `windowed`
    whether tokens attend to a sliding window.
    """

    def __init__(self, blocks: int, host_blocks: int = 0, windowed: bool = False) -> None:
        self.pool = BlockPool(blocks)
        self.host_total = host_blocks
        self.known: dict[bytes, Entry] = {}
        self.children: dict[bytes, dict[bytes, Entry]] = {}
        self.by_block: dict[int, Entry] = {}
        self.lru: OrderedDict[int, Entry] = OrderedDict()
        self.host_lru: OrderedDict[int, Entry] = OrderedDict()
        self.leased = 0
        self.leased_idle = 0
        self.evictions = 0
        self.spill = True
        self.windowed = windowed
        self._host_free = list(range(host_blocks - 1, -1, -1))
        self._saving: dict[int, tuple[Entry, int]] = {}
        self._loading: dict[int, Load] = {}
        self._spills: list[tuple[int, int]] = []
        self._saves: list[tuple[int, int]] = []
        self._loads: list[tuple[int, int]] = []

    @property
    def available(self) -> int:
        """Blocks that a sequence could have right now: the free and the kept ones."""
        return self.pool.free + len(self.lru) + self.leased_idle

    @property
    def host_used(self) -> int:
        return self.host_total - len(self._host_free)

    @property
    def in_flight(self) -> int:
        """Copies that were handed out and have not arrived."""
        return len(self._saving) + len(self._loading)

    # --- entries --------------------------------------------------------------------------

    def publish(self, parent: bytes, key: bytes, tokens: tuple[int, ...], block: int) -> Entry:
        """Make a computed block known. The answer may be another's, computed before."""
        entry = self.known.get(key)
        if entry is None:
            entry = self._link(Entry(key, parent, tokens))
        if entry.block < 0:
            entry.block = block
            self.by_block[block] = entry
        return entry

    def _link(self, entry: Entry) -> Entry:
        self.known[entry.key] = entry
        self.children.setdefault(entry.parent, {})[entry.key] = entry
        return entry

    def use(self, entry: Entry, conversation: str) -> None:
        if conversation not in entry.users:
            entry.shared = entry.shared or bool(entry.users)
            entry.users.add(conversation)

    def hold(self, entry: Entry) -> None:
        if not self.pool.refs(entry.block):
            if entry.leases:
                self.leased_idle -= 1
            else:
                self.lru.pop(entry.block, None)
        self.pool.hold(entry.block)

    def let_go(self, entry: Entry) -> None:
        block = entry.block
        if not self.pool.drop(block):
            return
        if entry.dead:
            self._leave(entry)
        elif entry.leases:
            self.leased_idle += 1
        else:
            self.lru[block] = entry

    def lease(self, entry: Entry, conversation: str) -> None:
        if not entry.leases:
            self.leased += 1
            if not self.pool.refs(entry.block):
                self.leased_idle += 1
                self.lru.pop(entry.block, None)
        entry.leases.add(conversation)

    def unlease(self, entry: Entry, conversation: str, front: bool = False) -> None:
        """End a conversation's lease on a block; with `front` the block is reclaimed next."""
        if conversation not in entry.leases:
            return
        entry.leases.discard(conversation)
        if entry.leases:
            return
        self.leased -= 1
        if not self.pool.refs(entry.block):
            self.leased_idle -= 1
            self.lru[entry.block] = entry
            if front:
                self.lru.move_to_end(entry.block, last=False)

    # --- leaving --------------------------------------------------------------------------

    def reclaim_next(self, entry: Entry, host: bool = True) -> None:
        """Let a kept block be the next to be reclaimed, on the device and, with `host`, in host
        memory."""
        if entry.block in self.lru:
            self.lru.move_to_end(entry.block, last=False)
        if host and entry.host in self.host_lru:
            self.host_lru.move_to_end(entry.host, last=False)

    def take_kept(self) -> int:
        """A block with one reference, without breaking any lease; -1 if there is none."""
        while not self.pool.free:
            if not self.evict_oldest():
                return -1
        return self.pool.take()

    def evict_oldest(self) -> bool:
        """Give up the least recently used kept block; False if there is none."""
        if not self.lru:
            return False
        self.evictions += 1
        self.evict(next(iter(self.lru.values())))
        return True

    def evict(self, entry: Entry) -> None:
        """Give up an idle block on the device. It stays known if host memory has it; what a
        living conversation may come back to is demoted, if that is worth it. Else it is
        forgotten, and with it all that continues it."""
        assert not self.pool.refs(entry.block), f"block {entry.block} is held"
        if entry.host < 0 and self.spill and entry.users and self.host_total:
            self._spill(entry)
        if entry.host < 0:
            self.forget(entry)
        else:
            self._unlease_all(entry)
            self.lru.pop(entry.block, None)
            self._leave(entry)

    def forget(self, entry: Entry) -> None:
        """Nobody finds this block again, nor what continues it. Copies in flight end first."""
        if entry.dead:
            return
        found = [entry]
        if not self.windowed:
            for one in found:  # grows meanwhile: a long context is deeper than Python may recurse
                found += self.children.get(one.key, {}).values()
        for one in reversed(found):
            self._forget(one)

    def _forget(self, entry: Entry) -> None:
        self._unlease_all(entry)
        entry.dead = True
        del self.known[entry.key]
        siblings = self.children[entry.parent]
        del siblings[entry.key]
        if not siblings:
            del self.children[entry.parent]
        if entry.block >= 0 and not self.pool.refs(entry.block):
            self.lru.pop(entry.block, None)
            self._leave(entry)
        if entry.host >= 0:
            self.host_lru.pop(entry.host)
            if not entry.pins:
                self._leave_host(entry)

    def forget_blocks(self, blocks: list[int]) -> None:
        """Forget what was to be written to these blocks, and was not."""
        for block in blocks:
            if block in self.by_block:
                self.forget(self.by_block[block])

    def retire(self, entry: Entry) -> None:
        """Forget a block that is of no use beside another, unless somebody has it: an unfinished
        block of each turn would fill host memory otherwise."""
        held = entry.block >= 0 and self.pool.refs(entry.block)
        if not (held or entry.users or entry.pins or entry.saving or entry.load):
            self.forget(entry)

    def _unlease_all(self, entry: Entry) -> None:
        for conversation in list(entry.leases):
            self.unlease(entry, conversation)

    def _leave(self, entry: Entry) -> None:
        self.pool.give_back(entry.block)
        del self.by_block[entry.block]
        entry.block = -1

    def _leave_host(self, entry: Entry) -> None:
        self.host_lru.pop(entry.host, None)
        self._host_free.append(entry.host)
        entry.host = -1

    # --- host memory ----------------------------------------------------------------------

    def _take_host(self) -> int:
        """A place in host memory, the least recently used one if none is free; -1 if all wait."""
        if not self._host_free:
            victim = next((e for e in self.host_lru.values() if not e.pins), None)
            if victim is None:
                return -1
            if victim.block >= 0:
                self._leave_host(victim)
            else:
                self.forget(victim)
        return self._host_free.pop() if self._host_free else -1

    def _spill(self, entry: Entry) -> None:
        """Have a block copied before the next step overwrites it."""
        entry.pins += 1
        host = self._take_host()
        entry.pins -= 1
        if host >= 0 and not entry.dead:
            entry.host = host
            self.host_lru[host] = entry
            self._spills.append((entry.block, host))
        elif host >= 0:
            self._host_free.append(host)

    def save(self, entry: Entry) -> bool:
        """Begin to copy a block to host memory; True if it is there or on its way."""
        if entry.host >= 0 or entry.saving:
            return True
        host = self._take_host() if entry.block >= 0 and entry.load is None else -1
        if host < 0:
            return False
        if entry.dead:  # it was what had to make room
            self._host_free.append(host)
            return False
        entry.saving = True
        self.hold(entry)
        self._saving[entry.block] = (entry, host)
        self._saves.append((entry.block, host))
        return True

    def saved(self, block: int) -> Entry:
        """A save has arrived."""
        entry, host = self._saving.pop(block)
        entry.saving = False
        if entry.dead:
            self._host_free.append(host)
        else:
            entry.host = host
            self.host_lru[host] = entry
        self.let_go(entry)
        return entry

    def save_failed(self, block: int) -> Entry:
        """Give up a save: its place in host memory is free again."""
        entry, host = self._saving.pop(block)
        entry.saving = False
        self._host_free.append(host)
        self.let_go(entry)
        return entry

    def spill_failed(self, host: int) -> None:
        """Forget the block that was to be at this place in host memory."""
        entry = self.host_lru.get(host)
        if entry is not None:
            self.forget(entry)

    def load(self, entry: Entry, block: int, seq: Sequence | None, private: bool = False) -> None:
        """Begin to copy a block from host memory to `block`, which has one reference: `seq`'s,
        or nobody's, which the copy then takes over."""
        load = Load(entry, block, private)
        entry.pins += 1
        if seq is not None:
            self.pool.hold(block)
            self.wait(load, seq)
        if not private:
            entry.block, entry.load = block, load
            self.by_block[block] = entry
        self._loading[block] = load
        self._loads.append((entry.host, block))

    def wait(self, load: Load, seq: Sequence) -> None:
        load.waiters.append(seq)
        seq.loading += 1

    def loaded(self, block: int) -> None:
        """A load has arrived: whoever waited for it may run."""
        load = self._loading.pop(block)
        entry = load.entry
        entry.pins -= 1
        for seq in load.waiters:
            seq.loading -= 1
        if load.private:
            if self.pool.drop(block):
                self.pool.give_back(block)
        else:
            entry.load = None
            self.let_go(entry)
        if entry.dead and not entry.pins and entry.host >= 0:
            self._leave_host(entry)
        elif entry.host in self.host_lru:
            self.host_lru.move_to_end(entry.host)

    def load_failed(self, block: int) -> list[Sequence]:
        """Give up a load, and forget the block: nobody tries to load it again. Returns those who
        waited for it."""
        load = self._loading.pop(block)
        entry = load.entry
        for seq in load.waiters:
            seq.loading -= 1
        if not load.private:
            entry.load = None
        if not load.private or entry.block < 0:  # else it is on the device: somebody may run on it
            self.forget(entry)
        self.unpin(entry)
        if not load.private:
            self.let_go(entry)
        elif self.pool.drop(block):
            self.pool.give_back(block)
        return load.waiters

    def unpin(self, entry: Entry) -> None:
        entry.pins -= 1
        if entry.dead and not entry.pins and entry.host >= 0:
            self._leave_host(entry)

    def drain(self) -> Copies:
        """The copies decided since the last time, for the runner to carry out."""
        copies = Copies(self._spills, self._saves, self._loads)
        if copies:
            self._spills, self._saves, self._loads = [], [], []
        return copies

    # --- for tests ------------------------------------------------------------------------

    def check(self, held: dict[int, int], roots: set[bytes]) -> None:
        """Every invariant, given how often sequences hold each block. Raises `AssertionError`."""
        held = dict(held)
        for block in [*self._saving, *self._loading]:  # a copy in flight holds exactly one lock
            held[block] = held.get(block, 0) + 1
        for block in range(self.pool.count):
            assert self.pool.refs(block) == held.get(block, 0), f"block {block}: wrong count"
        kept = set(self.lru)
        alive = {b: e for b, e in self.by_block.items() if not e.dead}
        idle_leased = {b for b, e in alive.items() if e.leases and not self.pool.refs(b)}
        assert not kept & idle_leased and not kept & held.keys()
        assert self.pool.free + len(kept) + len(idle_leased) + len(held) == self.pool.count
        assert kept | idle_leased == {b for b in alive if not self.pool.refs(b)}
        assert self.leased_idle == len(idle_leased)
        assert self.leased == sum(1 for e in self.known.values() if e.leases)
        hosts = [e.host for e in self.known.values() if e.host >= 0]
        reserved = [h for _, h in self._saving.values()]
        pinned = {ld.entry.host for ld in self._loading.values() if ld.entry.dead}
        assert len(hosts) == len(set(hosts)) and set(hosts) == set(self.host_lru)
        assert len(self._host_free) + len(hosts) + len(reserved) + len(pinned) == self.host_total
        for entry in self.known.values():
            assert entry.block >= 0 or entry.host >= 0, "known, but nowhere"
            assert not entry.leases or entry.block >= 0, "leased, but not on the device"
            assert entry.block < 0 or self.by_block[entry.block] is entry
            if not self.windowed:
                assert entry.parent in self.known or entry.parent in roots, "a chain lost a block"


__all__ = ["BlockIndex"]
