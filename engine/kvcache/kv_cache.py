"""The KV cache of programs: prefix reuse, copy-on-write, soft leases, two tiers.

The last, partly filled block of a finished sequence is known like a full one; whoever continues
from it gets a copy (copy-on-write). What is only in host memory is loaded back before a sequence
runs, while it is parked; no step waits for it.

Blocks are reclaimed in this order: free; unleased, least recently used first; expired leases;
leases by value per block, lowest first. A block that a sequence holds is never reclaimed, and a
running sequence may reclaim everything else: nobody waits for a lease (hard pins deadlocked every
engine that shipped them). With host memory, what a conversation loses there is demoted.
"""

from collections.abc import Iterable
from itertools import islice

from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.entries import Entry, Match
from drawloom.engine.kvcache.keys import block_keys, chain, root
from drawloom.engine.kvcache.leases import ConversationLeases
from drawloom.engine.kvcache.prefix_index import BlockIndex
from drawloom.engine.kvcache.records import CacheCounters, common
from drawloom.engine.sequence import SamplingParams, Sequence

_BRANCHES_SEARCHED = 16
_NO_PARAMS = SamplingParams(max_tokens=0)


class KVCache:
    """Which block holds which tokens. Pure bookkeeping: it never touches a tensor.

    Args:
        lease_budget: largest share of the device's blocks under lease.
        host_blocks: blocks of host memory behind the device's.
        window: tokens that a token attends to, itself included; 0 is all.
        save_leased: copy leased blocks to host memory before their eviction requires it.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        lease_budget: float = 0.75,
        *,
        host_blocks: int = 0,
        window: int = 0,
        save_leased: bool = True,
    ) -> None:
        self.block_size, self.window = block_size, window
        self.index = BlockIndex(blocks, host_blocks, windowed=window > 0)
        self.pool = self.index.pool
        self.counters = CacheCounters()
        self.conversations = ConversationLeases(
            self.index,
            self.counters,
            int(blocks * lease_budget),
            save_leased and host_blocks > 0,
        )
        self._coming: dict[bytes, str] = {}

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

    # --- a sequence comes, grows and goes -------------------------------------------------

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _first_needed(self, tokens: int) -> int:
        """The first block that the token after `tokens` tokens attends to."""
        return max(0, tokens - self.window + 1) // self.block_size if self.window else 0

    def match(self, seq: Sequence) -> Match:
        """The kept beginning of a sequence. The last token is never taken from the cache: its
        logits are wanted."""
        size, limit = self.block_size, seq.reusable
        hashes, known = block_keys(self.block_size, seq, limit // size), self.index.known
        full = self._full(hashes[: limit // size])
        first = min(full, self._first_needed(full * size))
        entries = [known[key] for key in hashes[first:full]]
        parent = hashes[full - 1] if full else root(seq.salt)
        branch, shared = self._branch(parent, seq.tokens[full * size : limit][:size])
        return Match(first, entries, branch, full * size + shared)

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
            shared = common(rest, entry.tokens)
            if shared > length:
                best, length = entry, shared
        return best, length

    def producer(self, seq: Sequence) -> str | None:
        """Which running sequence is computing what this one needs next: better wait and share."""
        if not self._coming:
            return None
        hashes = block_keys(self.block_size, seq, seq.reusable // self.block_size)
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
        if branch is not None and need + branch.ready > room:
            branch = None
        if need > room:
            return None
        copies = self._seat(seq, found, branch, extent, reserve)
        try:
            grown = self.grow(seq, wanted)
            assert grown, "the blocks that were counted are not there"
            seq.computed = found.tokens if branch is not None else full * self.block_size
            seq.confirmed = seq.hit = seq.computed
            self._count_start(seq, found, branch)
        except Exception:
            for source, _, _ in copies:
                self.copied(source)
            raise
        ahead = block_keys(self.block_size, seq, len(seq.tokens) // self.block_size)
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
            if branch.ready:
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
            index.use(entry, seq.conversation)
        if branch is None:
            return []
        target = self._take(self._wish(seq))
        seq.blocks.append(target)
        if not branch.ready:  # straight into its own block, whoever else loads it
            index.load(branch, target, seq, private=True)
            index.unpin(branch)
            return []
        return [(branch.block, target, found.tokens - full * self.block_size)]

    def copied(self, source: int) -> None:
        """The copy from `source` was made; it may be reclaimed again."""
        self.index.let_go(self.index.by_block[source])

    def _count_start(self, seq: Sequence, found: Match, branch: Entry | None) -> None:
        counters = self.counters
        host = sum(self.block_size for e in found.entries if e.load is not None)
        if branch is not None and not branch.ready:
            host += seq.computed % self.block_size
        if not seq.preemptions:
            seq.hit_host = host
            counters.hit_host_tokens += host
            counters.hit_tokens += seq.hit - host
            counters.prompt_tokens += len(seq.tokens)
        self.conversations.began(seq)

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
        seq.confirmed = tokens
        seq.computed = max(seq.computed, tokens)  # a later step of its own may be under way
        if tokens >= (seq.published + 1) * self.block_size:
            self._publish_full(seq, tokens)
        if self.window:
            self._leave_window(seq, tokens)

    def _publish_full(self, seq: Sequence, tokens: int) -> None:
        size, index = self.block_size, self.index
        hashes = block_keys(self.block_size, seq, tokens // size)
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
                seq.table_blocks = min(seq.table_blocks, at)
            seq.published += 1
            index.use(entry, seq.conversation)

    def _leave_window(self, seq: Sequence, tokens: int) -> None:
        first = min(seq.published, self._first_needed(tokens))
        for at in range(seq.dropped, first):
            self.index.let_go(self.index.by_block[seq.blocks[at]])
            seq.blocks[at] = -1
        seq.dropped = max(seq.dropped, first)

    def finish(self, seq: Sequence) -> None:
        """A sequence ends or is preempted: its blocks stay known until somebody needs them. It
        holds none afterwards, whatever fails."""
        try:
            self.conversations.remember(seq, self._leave_known(seq))
        finally:
            self._let_go(seq)

    def _leave_known(self, seq: Sequence) -> list[Entry]:
        """The entries of what a sequence computed; its unfinished block becomes one of them."""
        index, size = self.index, self.block_size
        if seq.loading:  # what comes into its own block is not there yet
            seq.computed = min(seq.computed, seq.published * size)
        elif seq.computed >= (seq.published + 1) * size:
            self._publish_full(seq, seq.computed)
        entries = [index.by_block[block] for block in seq.blocks[seq.dropped : seq.published]]
        full = seq.published * size
        if full < seq.computed < full + size:
            last = seq.blocks[seq.published]
            parent = seq.hashes[seq.published - 1] if seq.published else root(seq.salt)
            part = tuple(seq.tokens[full : seq.computed])
            entry = index.publish(parent, chain(parent, part), part, last)
            if entry.block == last:
                entries.append(entry)
                index.use(entry, seq.conversation)
        return entries

    def _let_go(self, seq: Sequence) -> None:
        """Give all blocks of a sequence back; the last ones are reclaimed first."""
        for block in reversed(seq.blocks[seq.dropped :]):
            entry = self.index.by_block.get(block)
            if entry is not None:
                self.index.let_go(entry)
            elif self.pool.drop(block):
                self.pool.give_back(block)
        for key in seq.hashes[seq.published :]:
            if self._coming.get(key) == seq.id:
                del self._coming[key]
        self.pool.unreserve(seq.extent)
        seq.blocks, seq.computed, seq.published, seq.dropped, seq.extent = [], 0, 0, 0, -1
        seq.table_blocks = seq.confirmed = 0

    def discard(self, seq: Sequence, trusted: int) -> None:
        """Like `finish`, for a step that failed: only what was complete before it is kept."""
        seq.computed = min(seq.computed, trusted)
        self.finish(seq)

    def abandon(self, seq: Sequence) -> None:
        """Take back what a sequence holds and remember nothing of it: `finish` failed."""
        self.conversations.left(seq)
        self._let_go(seq)

    def forget_all(self) -> None:
        """Drop everything that no sequence holds (the weights changed)."""
        self.conversations.clear()
        for entry in list(self.index.known.values()):
            if entry.block < 0 or not self.pool.refs(entry.block):
                self.index.forget(entry)

    def empty_device(self) -> None:
        """Move what nobody holds to host memory, or drop it: the device's memory is about to go."""
        self.conversations.unlease_all()
        for entry in list(self.index.by_block.values()):
            if entry.block >= 0 and self.pool.refs(entry.block):
                self.index.forget(entry)
            elif entry.block >= 0 and not entry.dead:
                self.index.evict(entry)

    def adopt(self, conversation: str, tokens: list[int], salt: bytes) -> list[int]:
        """Make `tokens` known as a conversation's, as far as there is room without breaking a
        lease; the blocks to write, from the first. They must be written before the next step."""
        seq = Sequence(f"import:{conversation}", conversation, tokens, _NO_PARAMS, salt)
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
        self.conversations.saved(self.index.saved(block))

    def loaded(self, block: int) -> None:
        self.index.loaded(block)

    def not_copied(self, copies: Copies) -> list[Sequence]:
        """Give up copies that failed. What is in one tier only by them is forgotten.

        Returns:
            The sequences that waited for a load. They hold blocks without content: each must be
            given to `discard`.
        """
        waited: dict[Sequence, None] = {}
        for _, block in copies.loads:
            waited |= dict.fromkeys(self.index.load_failed(block))
        for block, _ in copies.saves:
            self.conversations.not_saved(self.index.save_failed(block))
        for _, host in copies.spills:
            self.index.spill_failed(host)
        return list(waited)

    # --- reclaiming -----------------------------------------------------------------------

    def _take(self, wish: int = -1) -> int:
        while not self.pool.free:
            if not self.index.evict_oldest() and not self.conversations.break_cheapest():
                return -1
        return self.pool.take(wish)

    def check(self, sequences: list[Sequence], salts: Iterable[bytes] = (b"",)) -> None:
        """Every invariant of the cache, for tests; `salts` are all that were ever used. Raises
        `AssertionError`."""
        held: dict[int, int] = {}
        for seq in sequences:
            for block in seq.blocks[seq.dropped :]:
                held[block] = held.get(block, 0) + 1
        self.index.check(held, {root(salt) for salt in salts})
        self.conversations.check()
        assert set(self._coming.values()) <= {seq.id for seq in sequences}


__all__ = ["CacheCounters", "KVCache"]
