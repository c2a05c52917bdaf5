"""The KV cache of programs: prefix reuse, copy-on-write, soft leases, two tiers.

The last, partly filled block of a finished sequence is known like a full one; whoever continues
from it gets a copy (copy-on-write). What is only in host memory is loaded back before a sequence
runs, while it is parked (engines.md §6.3); no step waits for it.

A *lease* is an attribute of kept blocks, not a lock. Blocks are reclaimed in this order: free;
unleased, least recently used first; expired leases; leases by value per block, lowest first.
A block that a sequence holds is never reclaimed, and a running sequence may reclaim everything
else: nobody waits for a lease (hard pins deadlocked every engine that shipped them). With host
memory, what a living conversation loses on the device is demoted to it, not lost.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from drawloom.engine.index import BlockIndex, Copies, Entry, chain, root
from drawloom.engine.sequence import SamplingParams, Sequence
from drawloom.leases import KVReply, LeaseStatus

_BRANCHES_SEARCHED = 16
_NO_PARAMS = SamplingParams(max_tokens=0)


class WriteThrough(Enum):
    """Which blocks are copied to host memory before they have to be."""

    NEVER = "never"
    LEASED = "leased"
    ALL = "all"


@dataclass(slots=True)
class _Lineage:
    """What a conversation left behind: its chain of entries and how far it was ever computed.

    `version` outdates what the heaps of leases still say; `broken` is until when a lease that
    was broken would have held.
    """

    entries: list[Entry] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    expires: float = 0.0
    leased: int = 0
    version: int = 0
    broken: float = 0.0
    active: int = 0


@dataclass(slots=True)
class CacheCounters:
    """Since the start, in tokens and events. `lease_regrets` are broken leases whose conversation
    came back while they would have held, `regret_tokens` what it lost by that."""

    hit_tokens: int = 0
    hit_host_tokens: int = 0
    recomputed_tokens: int = 0
    prompt_tokens: int = 0
    lease_grants: int = 0
    lease_clips: int = 0
    lease_breaks: int = 0
    lease_regrets: int = 0
    regret_tokens: int = 0
    evictions: int = 0
    demotions: int = 0
    saved_blocks: int = 0
    loaded_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """The kept beginning of a sequence: its full entries (from `first` on, behind a sliding
    window), a partly filled block to copy from, and the tokens found in all."""

    first: int
    entries: list[Entry]
    branch: Entry | None
    tokens: int


class KVCache:
    """Which block holds which tokens. Pure bookkeeping: it never touches a tensor.

    Args:
        lease_budget: largest share of the device's blocks under lease.
        host_blocks: blocks of host memory behind the device's.
        window: tokens that a token attends to, itself included; 0 is all.
        spill: whether copying a block out and back costs less than computing it again.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        lease_budget: float = 0.75,
        *,
        host_blocks: int = 0,
        window: int = 0,
        write_through: WriteThrough = WriteThrough.LEASED,
    ) -> None:
        self.block_size, self.window = block_size, window
        self.index = BlockIndex(blocks, host_blocks, windowed=window > 0)
        self.pool = self.index.pool
        self.counters = CacheCounters()
        self.write_through = write_through if host_blocks else WriteThrough.NEVER
        self.spill = True
        self._lease_limit = int(blocks * lease_budget)
        self._lineages: dict[str, _Lineage] = {}
        self._coming: dict[bytes, str] = {}
        self._by_value: list[tuple[float, int, str]] = []
        self._by_expiry: list[tuple[float, int, str]] = []
        self._versions = 0
        self._now = 0.0
        self._demoting: dict[Entry, str] = {}

    @property
    def available(self) -> int:
        """Blocks that a sequence could have right now: the free and the kept ones."""
        return self.index.available

    @property
    def leased_blocks(self) -> int:
        return self.index.leased

    @property
    def held_blocks(self) -> int:
        return self.pool.count - self.available

    @property
    def lineages(self) -> int:
        return len(self._lineages)

    def length(self, lineage: str) -> int:
        """Tokens of a conversation whose KV was ever computed; 0 if it is unknown."""
        record = self._lineages.get(lineage)
        return len(record.tokens) if record else 0

    # --- a sequence comes, grows and goes -------------------------------------------------

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _hashes(self, seq: Sequence, blocks: int) -> list[bytes]:
        """The keys of a sequence's first full blocks, computed once each."""
        hashes, size = seq.hashes, self.block_size
        for at in range(len(hashes), blocks):
            parent = hashes[-1] if hashes else root(seq.salt)
            hashes.append(chain(parent, seq.tokens[at * size : (at + 1) * size]))
        return hashes

    def _first_needed(self, tokens: int) -> int:
        """The first block that the token after `tokens` tokens attends to."""
        return max(0, tokens - self.window + 1) // self.block_size if self.window else 0

    def match(self, seq: Sequence) -> Match:
        """The kept beginning of a sequence. The last token is never taken from the cache: its
        logits are wanted."""
        size, limit = self.block_size, seq.reusable
        hashes, known = self._hashes(seq, limit // size), self.index.known
        full = self._full(hashes[: limit // size])
        first = min(full, self._first_needed(full * size))
        entries = [known[key] for key in hashes[first:full]]
        parent = hashes[full - 1] if full else root(seq.salt)
        branch, common = self._branch(parent, seq.tokens[full * size : limit][:size])
        return Match(first, entries, branch, full * size + common)

    def _full(self, hashes: list[bytes]) -> int:
        """How many full blocks are kept; behind a window, the last of which are enough."""
        known = self.index.known
        if not self.window:
            return next((n for n, key in enumerate(hashes) if key not in known), len(hashes))
        best = missing = 0  # `missing`: first block after the last one that is not there
        for count in range(1, len(hashes) + 1):
            if hashes[count - 1] not in known:
                missing = count
            elif missing <= self._first_needed(count * self.block_size):
                best = count
        return best

    def _branch(self, parent: bytes, rest: list[int]) -> tuple[Entry | None, int]:
        best, length = None, 0
        children = self.index.children.get(parent, {})
        for entry in islice(reversed(children.values()), _BRANCHES_SEARCHED):
            common = _common(rest, entry.tokens)
            if common > length:
                best, length = entry, common
        return best, length

    def producer(self, seq: Sequence) -> str | None:
        """Which running sequence is computing what this one needs next: better wait and share."""
        if not self._coming:
            return None
        hashes = self._hashes(seq, seq.reusable // self.block_size)
        full = self._full(hashes[: seq.reusable // self.block_size])
        return self._coming.get(hashes[full]) if full < len(hashes) else None

    def start(
        self, seq: Sequence, extent: int, reserve: bool, chunk: int = 1 << 30
    ) -> list[tuple[int, int, int]] | None:
        """Give a waiting sequence its kept beginning and blocks for the rest of its tokens
        (behind a sliding window, for its next `chunk`).

        None, and nothing done, when there are not enough blocks. Otherwise the copies to make
        before the next step, ``(source, target, tokens)``. `extent` is how many blocks it will
        want in all; with `reserve` they are kept together.
        """
        found = self.match(seq)
        full = found.first + len(found.entries)
        wanted = len(seq.tokens)
        if self.window:
            wanted = min(wanted, found.tokens + chunk)
        here = [e for e in found.entries if e.block >= 0]
        room = self.available - sum(1 for e in here if not self.pool.refs(e.block))
        need = self.blocks_for(wanted) - found.first - len(here)
        branch = found.branch
        if branch is not None and need + _ready(branch) > room:
            branch = None
        if need > room:
            return None
        copies = self._seat(seq, found, branch, extent, reserve)
        grown = self.grow(seq, wanted)
        assert grown, "the blocks that were counted are not there"
        seq.computed = seq.hit = found.tokens if branch is not None else full * self.block_size
        self._count_start(seq, found, branch)
        ahead = self._hashes(seq, len(seq.tokens) // self.block_size)
        self._coming.update((key, seq.id) for key in ahead[full:])
        return copies

    def _seat(
        self, seq: Sequence, found: Match, branch: Entry | None, extent: int, reserve: bool
    ) -> list[tuple[int, int, int]]:
        """Hold what was found on the device, begin to load what is in host memory."""
        index, full = self.index, found.first + len(found.entries)
        for entry in found.entries:
            if entry.block >= 0:
                index.hold(entry)
            else:
                entry.pins += 1  # making room must not take it
        if branch is not None:
            if _ready(branch):
                index.hold(branch)
            else:
                branch.pins += 1
        if reserve and extent > len(found.entries):
            seq.extent = self.pool.reserve(extent - len(found.entries))
            seq.extent_base = full
        seq.blocks = [-1] * found.first
        seq.dropped, seq.published = found.first, full
        for entry in found.entries:
            if entry.block < 0:
                block = self._take(self._wish(seq))
                index.load(entry, block, seq)
                index.unpin(entry)
            elif entry.load is not None:
                index.wait(entry.load, seq)
            seq.blocks.append(entry.block)
            index.use(entry, seq.lineage)
        if branch is None:
            return []
        target = self._take(self._wish(seq))
        seq.blocks.append(target)
        if not _ready(branch):  # straight into its own block, whoever else loads it
            index.load(branch, target, seq, private=True)
            index.unpin(branch)
            return []
        return [(branch.block, target, found.tokens - full * self.block_size)]

    def copied(self, source: int) -> None:
        """The copy from `source` was made; it may be reclaimed again."""
        self.index.let_go(self.index.by_block[source])

    def _count_start(self, seq: Sequence, found: Match, branch: Entry | None) -> None:
        counters, record = self.counters, self._lineages.get(seq.lineage)
        host = sum(self.block_size for e in found.entries if e.load is not None)
        if branch is not None and not _ready(branch):
            host += seq.computed % self.block_size
        if not seq.preemptions:
            seq.hit_host = host
            counters.hit_host_tokens += host
            counters.hit_tokens += seq.hit - host
            counters.prompt_tokens += len(seq.tokens)
        if record is None:
            return
        record.active += 1
        lost = max(0, min(_common(seq.tokens, record.tokens), seq.reusable) - seq.hit)
        counters.recomputed_tokens += lost
        if lost and record.broken > self._now:
            counters.lease_regrets += 1
            counters.regret_tokens += lost
        record.broken = 0.0

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Give a sequence blocks for `tokens` tokens in all; False when there are not enough."""
        for _ in range(self.blocks_for(tokens) - len(seq.blocks)):
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
        if tokens >= (seq.published + 1) * self.block_size:
            self._publish_full(seq, tokens)
        if self.window:
            self._leave_window(seq, tokens)

    def _publish_full(self, seq: Sequence, tokens: int) -> None:
        size, index = self.block_size, self.index
        hashes = self._hashes(seq, tokens // size)
        while seq.published < tokens // size:
            at = seq.published
            mine = seq.blocks[at]
            parent = hashes[at - 1] if at else root(seq.salt)
            part = tuple(seq.tokens[at * size : (at + 1) * size])
            entry = index.publish(parent, hashes[at], part, mine)
            self._coming.pop(hashes[at], None)
            if entry.block != mine:
                if entry.load is not None:
                    return  # another's copy is still in flight: next time
                index.hold(entry)  # somebody was first: share theirs, free ours
                self.pool.drop(mine)
                self.pool.give_back(mine)
                seq.blocks[at] = entry.block
            seq.published += 1
            index.use(entry, seq.lineage)

    def _leave_window(self, seq: Sequence, tokens: int) -> None:
        first = min(seq.published, self._first_needed(tokens))
        for at in range(seq.dropped, first):
            self.index.let_go(self.index.by_block[seq.blocks[at]])
            seq.blocks[at] = -1
        seq.dropped = max(seq.dropped, first)

    def finish(self, seq: Sequence) -> None:
        """A sequence ends or is preempted: its blocks stay known until somebody needs them."""
        index, size = self.index, self.block_size
        if seq.loading:  # what comes into its own block is not there yet
            seq.computed = min(seq.computed, seq.published * size)
        elif seq.computed >= (seq.published + 1) * size:
            self._publish_full(seq, seq.computed)
        entries = [index.by_block[block] for block in seq.blocks[seq.dropped : seq.published]]
        tail = seq.blocks[seq.published :]
        full = seq.published * size
        if full < seq.computed < full + size:
            parent = seq.hashes[seq.published - 1] if seq.published else root(seq.salt)
            part = tuple(seq.tokens[full : seq.computed])
            entry = index.publish(parent, chain(parent, part), part, tail[0])
            if entry.block == tail[0]:
                entries.append(entry)
                index.use(entry, seq.lineage)
                tail = tail[1:]
        for block in tail:
            if self.pool.drop(block):
                self.pool.give_back(block)
        for key in seq.hashes[seq.published :]:
            if self._coming.get(key) == seq.id:
                del self._coming[key]
        self._remember(seq, entries)
        for entry in reversed(entries):
            index.let_go(entry)
        self.pool.unreserve(seq.extent)
        seq.blocks, seq.computed, seq.published, seq.dropped, seq.extent = [], 0, 0, 0, -1

    def discard(self, seq: Sequence, trusted: int) -> None:
        """Like `finish`, for a step that failed: only what was complete before it is kept."""
        seq.computed = min(seq.computed, trusted)
        self.finish(seq)

    def _remember(self, seq: Sequence, entries: list[Entry]) -> None:
        if seq.orphan:
            for entry in entries:
                entry.users.discard(seq.lineage)
            return
        record = self._lineages.setdefault(seq.lineage, _Lineage())
        record.active = max(0, record.active - 1)
        mine = set(map(id, entries))
        for entry in reversed(record.entries):
            if id(entry) not in mine:  # superseded: a newer turn took another path
                self.index.unlease(entry, seq.lineage)
                entry.users.discard(seq.lineage)
        record.entries = entries
        known = len(record.tokens)
        if seq.computed >= known or seq.tokens[:known] != record.tokens:
            record.tokens = seq.tokens[: seq.computed]
        record.leased = 0
        for at, entry in enumerate(entries):  # a lease covers a beginning, without gaps
            if seq.lineage in entry.leases and record.leased == at:
                record.leased += 1
            else:
                self.index.unlease(entry, seq.lineage)
        if self.write_through is WriteThrough.ALL:
            self._save(entries)

    # --- verbs for programs ---------------------------------------------------------------

    def lease(self, lineage: str, now: float, ttl: float, value: float) -> KVReply:
        """Keep a lineage's blocks, if possible, for `ttl` seconds. A new lease replaces the old.

        `value` is the seconds that having them would save; leases are broken by value per block.
        """
        record = self._lineages.get(lineage)
        if record is None or not record.entries:
            return KVReply(LeaseStatus.MISSING, 0)
        record.leased = covered = 0
        for entry in record.entries:
            if entry.dead or entry.block < 0:
                break
            if not entry.leases and self.index.leased >= self._lease_limit:
                break
            self.index.lease(entry, lineage)
            self._demoting.pop(entry, None)
            record.leased += 1
            covered += len(entry.tokens)
        self._schedule(lineage, record, now + ttl, value)
        if self.write_through is WriteThrough.LEASED:
            self._save(record.entries)
        whole = record.leased == len(record.entries)
        self.counters.lease_grants += 1
        self.counters.lease_clips += not whole
        return KVReply(LeaseStatus.ACCEPTED if whole else LeaseStatus.CLIPPED, covered)

    def _schedule(self, name: str, record: _Lineage, expires: float, value: float) -> None:
        self._versions += 1
        record.version, record.expires, record.broken = self._versions, expires, 0.0
        if record.leased:
            density = value / record.leased
            heapq.heappush(self._by_value, (density, record.version, name))
            heapq.heappush(self._by_expiry, (expires, record.version, name))

    def renew(self, lineage: str, now: float, ttl: float) -> KVReply:
        """Let a lease that holds last until `ttl` seconds from now. `MISSING` if none does."""
        record = self._lineages.get(lineage)
        if record is None or not record.leased:
            return KVReply(LeaseStatus.MISSING, 0)
        record.expires = now + ttl
        heapq.heappush(self._by_expiry, (record.expires, record.version, lineage))
        covered = sum(len(e.tokens) for e in record.entries[: record.leased])
        return KVReply(LeaseStatus.ACCEPTED, covered)

    def release(self, lineage: str, *, evict: bool = True) -> KVReply:
        """A lineage is over. With `evict`, what only it used is free at once, else when needed."""
        record = self._lineages.get(lineage)
        if record is None:
            return KVReply(LeaseStatus.MISSING, 0)
        covered, index = 0, self.index
        for entry in reversed(record.entries):
            covered += len(entry.tokens)
            index.unlease(entry, lineage)
            entry.users.discard(lineage)
            self._demoting.pop(entry, None)
            if not evict or entry.dead or entry.users or entry.shared:
                continue
            idle = entry.block < 0 or not self.pool.refs(entry.block) or entry.saving
            if idle and not index.children.get(entry.key):
                index.forget(entry)
        del self._lineages[lineage]
        return KVReply(LeaseStatus.ACCEPTED, covered)

    def fork(self, parent: str, child: str) -> KVReply:
        """A new lineage that begins as a copy of another; blocks are shared, not copied."""
        record = self._lineages.get(parent)
        if record is None:
            return KVReply(LeaseStatus.MISSING, 0)
        if child not in self._lineages:
            twin = _Lineage(list(record.entries), list(record.tokens))
            self._lineages[child] = twin
            for entry in record.entries:
                self.index.use(entry, child)
        return KVReply(LeaseStatus.ACCEPTED, len(record.tokens))

    def demote(self, lineage: str) -> KVReply:
        """Copy a lineage to host memory while nobody needs it; then its device blocks are the
        first to be reclaimed. `DEFERRED` while it runs; `CLIPPED` when host memory is full, and
        then its lease holds on."""
        record = self._lineages.get(lineage)
        if record is None or not self.index.host_total:
            return KVReply(LeaseStatus.MISSING, 0)
        if record.active:
            return KVReply(LeaseStatus.DEFERRED, 0)
        covered = self._save(record.entries)
        whole = covered == len(record.entries)
        if whole:
            record.leased = 0
            for entry in record.entries:
                if entry.saving:
                    self._demoting[entry] = lineage
                self._give_way(entry, lineage)
        self.counters.demotions += 1
        done = sum(len(entry.tokens) for entry in record.entries[:covered])
        return KVReply(LeaseStatus.ACCEPTED if whole else LeaseStatus.CLIPPED, done)

    def _save(self, entries: list[Entry]) -> int:
        """Begin to copy entries to host memory, from the first on; how many are, or will be."""
        count = 0
        for entry in entries:
            if entry.dead or not self.index.save(entry):
                break
            count += 1
        return count

    def _give_way(self, entry: Entry, lineage: str) -> None:
        self.index.unlease(entry, lineage, front=True)
        if entry.block in self.index.lru:
            self.index.lru.move_to_end(entry.block, last=False)

    def prefetch(self, lineage: str) -> KVReply:
        """Load back what of a lineage is only in host memory, without breaking any lease.
        `CLIPPED` when there is no room for all of it."""
        record = self._lineages.get(lineage)
        if record is None:
            return KVReply(LeaseStatus.MISSING, 0)
        index, covered = self.index, 0
        record.entries = [e for e in record.entries if not e.dead]
        for entry in record.entries:  # so that making room for the tail takes no head
            self._demoting.pop(entry, None)
            if entry.block in index.lru:
                index.lru.move_to_end(entry.block)
        for entry in record.entries:
            if entry.block < 0:
                entry.pins += 1
                block = self._take_unleased()
                if block >= 0 and not entry.dead:
                    index.load(entry, block, None)
                elif block >= 0:
                    self.pool.drop(block)
                    self.pool.give_back(block)
                index.unpin(entry)
                if entry.dead or entry.block < 0:
                    return KVReply(LeaseStatus.CLIPPED, covered)
            covered += len(entry.tokens)
        return KVReply(LeaseStatus.ACCEPTED, covered)

    def forget_all(self) -> None:
        """Drop everything that no sequence holds (the weights changed)."""
        for name in [n for n, r in self._lineages.items() if not r.active]:
            self.release(name)
        for entry in list(self.index.known.values()):
            if entry.block < 0 or not self.pool.refs(entry.block):
                self.index.forget(entry)

    def empty_device(self) -> None:
        """Move what nobody holds to host memory, or drop it where that is full: the device's
        memory is about to go."""
        for name, record in self._lineages.items():
            for entry in record.entries[: record.leased]:
                self.index.unlease(entry, name)
            record.leased = 0
        for entry in list(self.index.by_block.values()):
            if entry.block >= 0 and not entry.dead and not self.pool.refs(entry.block):
                self._evict(entry)

    def expire(self, now: float) -> None:
        """End the leases whose time is over; their blocks count as unleased and just used."""
        self._now = now
        while self._by_expiry and self._by_expiry[0][0] <= now:
            _, version, name = heapq.heappop(self._by_expiry)
            record = self._lineages.get(name)
            if record is None or record.version != version or record.expires > now:
                continue
            for entry in reversed(record.entries[: record.leased]):
                self.index.unlease(entry, name)
            record.leased = 0

    # --- a lineage's blocks, from here to another engine ----------------------------------

    def contents(self, lineage: str) -> tuple[list[int], list[tuple[int, int]]] | None:
        """The tokens of a lineage and, block by block, ``(device block, host block)`` of them,
        either -1; None for one that is unknown or incomplete."""
        record = self._lineages.get(lineage)
        if record is None or self.window:
            return None
        tokens: list[int] = []
        places = []
        for entry in record.entries:
            if entry.dead or entry.load is not None:
                break
            tokens += entry.tokens
            places.append((entry.block, entry.host))
        return tokens, places

    def adopt(self, lineage: str, tokens: list[int], salt: bytes) -> list[int]:
        """Make `tokens` known as a lineage's, as far as there is room without breaking a lease;
        the blocks to write, from the first. They must be written before the next step."""
        seq = Sequence(f"import:{lineage}", lineage, tokens, _NO_PARAMS, salt)
        room = self.pool.free + len(self.index.lru)
        count = min(len(tokens), room * self.block_size)
        seq.tokens = tokens[:count]
        grown = self.grow(seq, count)
        assert grown, "the blocks that were counted are not there"
        blocks = list(seq.blocks)
        self.computed(seq, count)
        self.finish(seq)
        return blocks

    # --- copies between the tiers ---------------------------------------------------------

    def drain(self) -> Copies:
        """The copies decided since the last time, for the runner to carry out."""
        copies = self.index.drain()
        self.counters.saved_blocks += len(copies.saves) + len(copies.spills)
        self.counters.loaded_blocks += len(copies.loads)
        return copies

    def saved(self, block: int) -> None:
        entry = self.index.saved(block)
        lineage = self._demoting.pop(entry, None)
        if lineage is not None and not entry.dead:
            self._give_way(entry, lineage)

    def loaded(self, block: int) -> None:
        self.index.loaded(block)

    # --- reclaiming -----------------------------------------------------------------------

    def _take(self, wish: int = -1) -> int:
        while not self.pool.free:
            if not self._reclaim():
                return -1
        return self.pool.take(wish)

    def _take_unleased(self) -> int:
        while not self.pool.free and self.index.lru:
            self._reclaim()
        return self.pool.take() if self.pool.free else -1

    def _reclaim(self) -> bool:
        if self.index.lru:
            self.counters.evictions += 1
            self._evict(next(iter(self.index.lru.values())))
            return True
        return self._break_cheapest()

    def _evict(self, entry: Entry) -> None:
        """What a living conversation may come back to is demoted rather than lost."""
        worth = self.spill and bool(entry.users) and self.index.host_total > 0
        self.index.evict(entry, spill=worth)

    def _break_cheapest(self) -> bool:
        busy = []
        broken = False
        while self._by_value and not broken:
            item = heapq.heappop(self._by_value)
            record = self._lineages.get(item[2])
            if record is None or record.version != item[1] or not record.leased:
                continue
            leased = record.entries[: record.leased]
            if all(e.block >= 0 and self.pool.refs(e.block) for e in leased):
                busy.append(item)  # they are held, by a sequence or a copy: nothing to gain
                continue
            self._break(item[2], record)
            broken = True
        for item in busy:
            heapq.heappush(self._by_value, item)
        return broken

    def _break(self, name: str, record: _Lineage) -> None:
        self.counters.lease_breaks += 1
        for entry in record.entries[: record.leased]:  # head first: the tail ends up in front
            self.index.unlease(entry, name, front=True)
        record.leased, record.broken = 0, record.expires

    def check(self, sequences: list[Sequence], salts: Iterable[bytes] = (b"",)) -> None:
        """Every invariant of the cache, for tests; `salts` are all that were ever used. Raises
        `AssertionError`."""
        held: dict[int, int] = {}
        for seq in sequences:
            for block in seq.blocks[seq.dropped :]:
                held[block] = held.get(block, 0) + 1
        self.index.check(held, {root(salt) for salt in salts})
        assert self.index.leased <= self._lease_limit
        for name, record in self._lineages.items():
            for entry in record.entries[: record.leased]:
                assert name in entry.leases or entry.dead or entry.block < 0
        assert set(self._coming.values()) <= {seq.id for seq in sequences}


def _ready(entry: Entry) -> bool:
    """Whether a block is on the device, all of it."""
    return entry.block >= 0 and entry.load is None


def _common(mine: list[int], theirs: list[int] | tuple[int, ...]) -> int:
    """How many tokens two lists begin with alike."""
    length = min(len(mine), len(theirs))
    if tuple(mine[:length]) == tuple(theirs[:length]):
        return length
    return next(n for n in range(length) if mine[n] != theirs[n])


__all__ = ["CacheCounters", "KVCache", "Match", "WriteThrough"]
