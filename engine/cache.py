"""The KV cache of programs: prefix reuse, copy-on-write, soft leases.

Every full block that was computed is known by a chained hash of its tokens, so any sequence with
the same beginning finds it, whichever program computed it. The last, partly filled block of a
finished sequence is known the same way; whoever continues from it gets a copy (copy-on-write).

A *lease* is an attribute of kept blocks, not a lock. Blocks are reclaimed in this order: free;
unleased, least recently used first; expired leases; leases by value per block, lowest first.
A block that a sequence holds is never reclaimed, and a running sequence may reclaim everything
else: nobody waits for a lease (hard pins deadlocked every engine that shipped them).
"""

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

from drawloom.engine.blocks import BlockPool
from drawloom.engine.sequence import Sequence
from drawloom.leases import KVReply, LeaseStatus

_BRANCHES_SEARCHED = 16


@dataclass(slots=True, eq=False)
class _Entry:
    """A block whose content is known. `tokens` are what it adds to the chain of `parent`."""

    key: bytes
    parent: bytes
    tokens: tuple[int, ...]
    block: int
    users: set[str] = field(default_factory=set)
    leases: set[str] = field(default_factory=set)
    shared: bool = False


@dataclass(slots=True)
class _Lineage:
    """What a conversation left behind: its chain of entries and how far it was ever computed."""

    entries: list[_Entry] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    expires: float = 0.0
    value: float = 0.0
    leased: int = 0


@dataclass(slots=True)
class CacheCounters:
    """Since the start, in tokens and events."""

    hit_tokens: int = 0
    recomputed_tokens: int = 0
    prompt_tokens: int = 0
    lease_grants: int = 0
    lease_clips: int = 0
    lease_breaks: int = 0
    evictions: int = 0


def chain(parent: bytes, tokens: list[int] | tuple[int, ...]) -> bytes:
    """The key of a block: blake2b-128 over its parent's key and its tokens."""
    return blake2b(parent + array("i", tokens).tobytes(), digest_size=16).digest()


def root(salt: bytes) -> bytes:
    """The key before the first token; tenants, weights and adapters differ in their salt."""
    return blake2b(salt, digest_size=16, person=b"drawloom-kv").digest()


class KVCache:
    """Which block holds which tokens. Pure bookkeeping: it never touches a tensor."""

    def __init__(self, blocks: int, block_size: int, lease_budget: float = 0.75) -> None:
        self.block_size = block_size
        self.pool = BlockPool(blocks)
        self.counters = CacheCounters()
        self._lease_limit = int(blocks * lease_budget)
        self._index: dict[bytes, _Entry] = {}
        self._children: dict[bytes, dict[bytes, _Entry]] = {}
        self._by_block: dict[int, _Entry] = {}
        self._lru: OrderedDict[int, _Entry] = OrderedDict()
        self._lineages: dict[str, _Lineage] = {}
        self._leased_blocks = 0
        self._leased_idle = 0
        self._next_expiry = float("inf")

    @property
    def available(self) -> int:
        """Blocks that a sequence could have right now: the free and the kept ones."""
        return self.pool.free + len(self._lru) + self._leased_idle

    @property
    def leased_blocks(self) -> int:
        return self._leased_blocks

    @property
    def held_blocks(self) -> int:
        return self.pool.count - self.available

    @property
    def lineages(self) -> int:
        return len(self._lineages)

    # --- a sequence comes, grows and goes -------------------------------------------------

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def match(self, seq: Sequence) -> tuple[list[_Entry], _Entry | None, int]:
        """The kept beginning of a sequence: full entries, a block to copy from, tokens found.

        The last token is never taken from the cache: its logits are wanted.
        """
        size, limit = self.block_size, len(seq.tokens) - 1
        found: list[_Entry] = []
        key = root(seq.salt)
        while (len(found) + 1) * size <= limit:
            at = len(found) * size
            entry = self._index.get(chain(key, seq.tokens[at : at + size]))
            if entry is None:
                break
            found.append(entry)
            key = entry.key
        rest = seq.tokens[len(found) * size : limit][:size]
        branch, common = self._branch(key, rest)
        return found, branch, len(found) * size + common

    def _branch(self, parent: bytes, rest: list[int]) -> tuple[_Entry | None, int]:
        best, length = None, 0
        children = self._children.get(parent, {})
        for entry in islice(reversed(children.values()), _BRANCHES_SEARCHED):
            common = 0
            for mine, theirs in zip(rest, entry.tokens, strict=False):
                if mine != theirs:
                    break
                common += 1
            if common > length:
                best, length = entry, common
        return best, length

    def start(self, seq: Sequence, extent: int, reserve: bool) -> list[tuple[int, int, int]] | None:
        """Give a waiting sequence its kept beginning and blocks for the rest of its tokens.

        None, and nothing done, when there are not enough blocks. Otherwise the copies to make
        before the next step, ``(source, target, tokens)``. `extent` is how many blocks it will
        want in all; with `reserve` they are kept together.
        """
        entries, branch, found = self.match(seq)
        full = len(entries) * self.block_size
        room = self.available - sum(1 for e in entries if not self.pool.refs(e.block))
        need = self.blocks_for(len(seq.tokens)) - len(entries)
        if branch is not None and need + 1 > room:
            branch, found = None, full
        if need > room:
            return None
        for entry in entries:
            self._hold(entry)
            seq.blocks.append(entry.block)
            seq.keys.append(entry.key)
            self._use(entry, seq.lineage)
        if branch is not None:
            self._hold(branch)
        if reserve:
            seq.extent, seq.extent_base = self.pool.reserve(extent - len(entries)), len(entries)
        grown = self.grow(seq, len(seq.tokens))
        assert grown, "the blocks that were counted are not there"
        seq.computed = seq.hit = found
        self._count_start(seq)
        return [] if branch is None else [(branch.block, seq.blocks[len(entries)], found - full)]

    def copied(self, source: int) -> None:
        """The copy from `source` was made; it may be reclaimed again."""
        self._let_go(self._by_block[source])

    def _count_start(self, seq: Sequence) -> None:
        counters, known = self.counters, self._lineages.get(seq.lineage)
        if not seq.preemptions:
            counters.hit_tokens += seq.hit
            counters.prompt_tokens += len(seq.tokens)
        if known is not None:
            common = 0
            for mine, theirs in zip(seq.tokens, known.tokens, strict=False):
                if mine != theirs:
                    break
                common += 1
            counters.recomputed_tokens += max(0, min(common, len(seq.tokens) - 1) - seq.hit)

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Give a sequence blocks for `tokens` tokens in all; False when there are not enough."""
        need = self.blocks_for(tokens) - len(seq.blocks)
        for _ in range(need):
            block = self._take(self._wish(seq))
            if block < 0:
                return False
            seq.blocks.append(block)
        return True

    def _wish(self, seq: Sequence) -> int:
        if seq.extent >= 0:
            return seq.extent + len(seq.blocks) - seq.extent_base
        return seq.blocks[-1] + 1 if seq.blocks else -1

    def computed(self, seq: Sequence, tokens: int) -> None:
        """`tokens` tokens now have their KV: make the full blocks known to others."""
        seq.computed = tokens
        size = self.block_size
        while (len(seq.keys) + 1) * size <= tokens:
            at = len(seq.keys)
            part = tuple(seq.tokens[at * size : (at + 1) * size])
            parent = seq.keys[-1] if seq.keys else root(seq.salt)
            entry = self._publish(parent, part, seq.blocks[at])
            if entry.block != seq.blocks[at]:  # somebody was first: share theirs, free ours
                self._hold(entry)
                self.pool.drop(seq.blocks[at])
                self.pool.give_back(seq.blocks[at])
                seq.blocks[at] = entry.block
            seq.keys.append(entry.key)
            self._use(entry, seq.lineage)

    def finish(self, seq: Sequence) -> None:
        """A sequence ends or is preempted: its blocks stay known until somebody needs them."""
        entries = [self._index[key] for key in seq.keys]
        full = len(entries) * self.block_size
        tail = seq.blocks[len(entries) :]
        if seq.computed > full:
            parent = seq.keys[-1] if seq.keys else root(seq.salt)
            part = tuple(seq.tokens[full : seq.computed])
            entry = self._publish(parent, part, tail[0])
            if entry.block == tail[0]:
                entries.append(entry)
                self._use(entry, seq.lineage)
                tail = tail[1:]
        for block in tail:
            self.pool.drop(block)
            self.pool.give_back(block)
        self._remember(seq, entries)
        for entry in reversed(entries):
            self._let_go(entry)
        self.pool.unreserve(seq.extent)
        seq.blocks, seq.keys, seq.computed, seq.extent = [], [], 0, -1

    def discard(self, seq: Sequence, trusted: int) -> None:
        """Like `finish`, for a step that failed: only what was complete before it is kept."""
        seq.computed = min(seq.computed, trusted)
        self.finish(seq)

    def _remember(self, seq: Sequence, entries: list[_Entry]) -> None:
        lineage = self._lineages.setdefault(seq.lineage, _Lineage())
        stale = set(map(id, lineage.entries)) - set(map(id, entries))
        for entry in reversed(lineage.entries):
            if id(entry) in stale:  # superseded: a newer turn took another path
                self._unlease(entry, seq.lineage)
                entry.users.discard(seq.lineage)
        lineage.entries = entries
        if (
            seq.computed >= len(lineage.tokens)
            or seq.tokens[: len(lineage.tokens)] != lineage.tokens
        ):
            lineage.tokens = seq.tokens[: seq.computed]
        lineage.leased = sum(1 for e in entries if seq.lineage in e.leases)

    # --- verbs for programs ---------------------------------------------------------------

    def lease(self, lineage: str, now: float, ttl: float, value: float) -> KVReply:
        """Keep a lineage's blocks, if possible, for `ttl` seconds. A new lease replaces the old.

        `value` is the seconds that having them would save; leases are broken by value per block.
        """
        record = self._lineages.get(lineage)
        if record is None or not record.entries:
            return KVReply(LeaseStatus.MISSING, 0)
        record.expires, record.value, record.leased = now + ttl, value, 0
        covered = 0
        for entry in record.entries:
            if self._index.get(entry.key) is not entry or entry.block < 0:
                break
            if lineage not in entry.leases:
                if not entry.leases:
                    if self._leased_blocks >= self._lease_limit:
                        break
                    self._leased_blocks += 1
                    self._leased_idle += not self.pool.refs(entry.block)
                entry.leases.add(lineage)
                self._lru.pop(entry.block, None)
            record.leased += 1
            covered += len(entry.tokens)
        self._next_expiry = min(self._next_expiry, record.expires)
        whole = record.leased == len(record.entries)
        self.counters.lease_grants += 1
        self.counters.lease_clips += not whole
        return KVReply(LeaseStatus.ACCEPTED if whole else LeaseStatus.CLIPPED, covered)

    def release(self, lineage: str, *, evict: bool = True) -> KVReply:
        """A lineage is over. With `evict`, what only it used is free at once, else when needed."""
        record = self._lineages.get(lineage)
        if record is None:
            return KVReply(LeaseStatus.MISSING, 0)
        covered = 0
        for entry in reversed(record.entries):
            covered += len(entry.tokens)
            self._unlease(entry, lineage)
            entry.users.discard(lineage)
            if evict:
                exclusive = not entry.users and not entry.shared and entry.block in self._lru
                if exclusive and not self._children.get(entry.key):
                    self._evict(entry)
        del self._lineages[lineage]
        return KVReply(LeaseStatus.ACCEPTED, covered)

    def fork(self, parent: str, child: str) -> KVReply:
        """A new lineage that begins as a copy of another; blocks are shared, not copied."""
        record = self._lineages.get(parent)
        if record is None:
            return KVReply(LeaseStatus.MISSING, 0)
        if child not in self._lineages:
            self._lineages[child] = _Lineage(list(record.entries), list(record.tokens))
            for entry in record.entries:
                self._use(entry, child)
        return KVReply(LeaseStatus.ACCEPTED, len(record.tokens))

    def forget_all(self) -> None:
        """Drop everything that no sequence holds (the weights changed)."""
        for name in list(self._lineages):
            self.release(name)
        while self._lru:
            self._evict(next(iter(self._lru.values())))

    def expire(self, now: float) -> None:
        """End the leases whose time is over; their blocks count as unleased and just used."""
        if now < self._next_expiry:
            return
        for name, record in self._lineages.items():
            if record.leased and record.expires <= now:
                for entry in reversed(record.entries[: record.leased]):
                    self._unlease(entry, name)
                record.leased = 0
        pending = (r.expires for r in self._lineages.values() if r.leased)
        self._next_expiry = min(pending, default=float("inf"))

    # --- reclaiming -----------------------------------------------------------------------

    def _take(self, wish: int = -1) -> int:
        while not self.pool.free:
            if not self._reclaim():
                return -1
        return self.pool.take(wish)

    def _reclaim(self) -> bool:
        if self._lru:
            self.counters.evictions += 1
            self._evict(next(iter(self._lru.values())))
            return True
        held = [(n, r) for n, r in self._lineages.items() if r.leased and self._idle(r)]
        if not held:
            return False
        name, record = min(held, key=lambda pair: pair[1].value / pair[1].leased)
        self.counters.lease_breaks += 1
        self._break(name, record)
        return True

    def _idle(self, record: _Lineage) -> bool:
        """Whether breaking this lease could free a block: its last leased one is held by nobody."""
        return not self.pool.refs(record.entries[record.leased - 1].block)

    def _break(self, name: str, record: _Lineage) -> None:
        for entry in record.entries[: record.leased]:  # head first: the tail ends up in front
            self._unlease(entry, name, front=True)
        record.leased = 0

    def _evict(self, entry: _Entry) -> None:
        """Forget a kept block and all that continues it: no chain loses its middle."""
        for child in list(self._children.get(entry.key, {}).values()):
            self._evict(child)
        assert not self.pool.refs(entry.block), "a held block continues an idle one"
        for lineage in list(entry.leases):
            self._unlease(entry, lineage)
        self._lru.pop(entry.block, None)
        del self._index[entry.key], self._by_block[entry.block]
        siblings = self._children[entry.parent]
        del siblings[entry.key]
        if not siblings:
            del self._children[entry.parent]
        self.pool.give_back(entry.block)
        entry.block = -1

    # --- entries --------------------------------------------------------------------------

    def _publish(self, parent: bytes, tokens: tuple[int, ...], block: int) -> _Entry:
        key = chain(parent, tokens)
        known = self._index.get(key)
        if known is not None:
            return known
        entry = _Entry(key, parent, tokens, block)
        self._index[key] = self._by_block[block] = entry
        self._children.setdefault(parent, {})[key] = entry
        return entry

    def _use(self, entry: _Entry, lineage: str) -> None:
        entry.shared = entry.shared or bool(entry.users - {lineage})
        entry.users.add(lineage)

    def _hold(self, entry: _Entry) -> None:
        if entry.leases and not self.pool.refs(entry.block):
            self._leased_idle -= 1
        self.pool.hold(entry.block)
        self._lru.pop(entry.block, None)

    def _let_go(self, entry: _Entry) -> None:
        if not self.pool.drop(entry.block):
            return
        if entry.leases:
            self._leased_idle += 1
        else:
            self._lru[entry.block] = entry

    def _unlease(self, entry: _Entry, lineage: str, front: bool = False) -> None:
        if lineage not in entry.leases:
            return
        entry.leases.discard(lineage)
        if entry.leases:
            return
        self._leased_blocks -= 1
        if not self.pool.refs(entry.block):
            self._leased_idle -= 1
            self._lru[entry.block] = entry
            if front:
                self._lru.move_to_end(entry.block, last=False)

    def check(self, sequences: list[Sequence]) -> None:
        """Every invariant of the cache, for tests. Raises `AssertionError`."""
        held: dict[int, int] = {}
        for seq in sequences:
            for block in seq.blocks:
                held[block] = held.get(block, 0) + 1
        for block in range(self.pool.count):
            assert self.pool.refs(block) == held.get(block, 0), f"block {block}: wrong count"
        known, kept = self._by_block, set(self._lru)
        idle_leased = {b for b, e in known.items() if e.leases and not self.pool.refs(b)}
        assert not kept & idle_leased and not kept & held.keys()
        assert self.pool.free + len(kept) + len(idle_leased) + len(held) == self.pool.count
        assert kept | idle_leased == {b for b in known if not self.pool.refs(b)}
        assert self._leased_idle == len(idle_leased)
        assert self._leased_blocks == sum(1 for e in known.values() if e.leases)
        assert self._leased_blocks <= self._lease_limit
        roots = {root(seq.salt) for seq in sequences} | {root(b"")}
        for entry in known.values():
            assert self._index[entry.key] is entry
            assert entry.parent in self._index or entry.parent in roots, "a chain lost its middle"
            if self.pool.refs(entry.block) and entry.parent in self._index:
                assert self.pool.refs(self._index[entry.parent].block), "held after an idle block"


__all__ = ["CacheCounters", "KVCache", "chain", "root"]
