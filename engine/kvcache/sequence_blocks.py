"""Blocks of sequences: allocation on top of the cached prefix, publication, and release."""

from drawloom.engine.kvcache.entries import IndexEntry, PrefixMatch
from drawloom.engine.kvcache.keys import block_keys, chain, root
from drawloom.engine.kvcache.leases import ConversationLeases
from drawloom.engine.kvcache.offload import Offload
from drawloom.engine.kvcache.prefix_index import PrefixIndex
from drawloom.engine.kvcache.prefix_match import PrefixMatcher
from drawloom.engine.sequence import Sequence
from drawloom.engine.stats import CacheCounters


class SequenceBlocks:
    """Give sequences their blocks: the part of a `KVCache` that engine steps use.

    A sequence goes through `match`, `allocate`, `append`, `publish` and `free`.

    Args:
        blocks: blocks of the device.
        block_size: tokens a block.
        lease_limit: most blocks of the device under lease.
        host_blocks: blocks of host memory behind the device's.
        window: tokens that a token attends to, itself included; 0 is all.
        save_leased: copy leased blocks to host memory before their eviction requires it.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        *,
        lease_limit: int,
        host_blocks: int,
        window: int,
        save_leased: bool,
    ) -> None:
        self.block_size, self.window = block_size, window
        self.counters = CacheCounters()
        self._index = PrefixIndex(blocks, host_blocks, windowed=window > 0)
        self._pool = self._index.pool
        self._matcher = PrefixMatcher(self._index, block_size, window)
        self._offload = Offload(self._index, self.counters)
        self._conversations = ConversationLeases(
            self._offload, self.counters, lease_limit, save_leased and host_blocks > 0
        )
        self._computing: dict[bytes, str] = {}

    @property
    def available(self) -> int:
        """Return how many blocks a sequence could have now: the free and the evictable ones."""
        return self._index.available

    @property
    def total_blocks(self) -> int:
        """Return the number of blocks of the device."""
        return self._pool.count

    def blocks_for(self, tokens: int) -> int:
        """Return the number of blocks that so many tokens need."""
        return -(-tokens // self.block_size)

    def match(self, seq: Sequence) -> PrefixMatch:
        """Find the cached prefix of a sequence, without changing anything."""
        return self._matcher.match(seq)

    def producer(self, seq: Sequence) -> str | None:
        """Return the running sequence that computes the next block of this one, if any.

        It is cheaper to wait for that block and share it than to compute it twice.
        """
        if not self._computing:
            return None
        key = self._matcher.next_key(seq)
        return None if key is None else self._computing.get(key)

    def allocate(
        self, seq: Sequence, extent: int, reserve: bool, chunk: int = 1 << 30
    ) -> list[tuple[int, int, int]] | None:
        """Give a waiting sequence its cached prefix and blocks for the rest of its tokens.

        Args:
            extent: blocks that it will need in all.
            reserve: keep neighbouring blocks for them, while others have enough.
            chunk: behind a sliding window, tokens to allocate for beyond the prefix.

        Returns:
            The copies ``(source block, target block, tokens)`` to make before the next step; the
            sources stay pinned until `finish_copy`. None, with nothing changed, if there are not
            enough blocks.
        """
        found = self.match(seq)
        full = found.first + len(found.entries)
        wanted = len(seq.tokens)
        if self.window:
            wanted = min(wanted, found.tokens + chunk)
        on_device = [e for e in found.entries if e.block >= 0]
        room = self.available - sum(1 for e in on_device if not self._pool.refcount(e.block))
        need = self.blocks_for(wanted) - found.first - len(on_device)
        partial = found.partial
        if partial is not None and need + partial.on_device > room:
            partial = None
        if need > room:
            return None
        copies = self._take_prefix(seq, found, partial, extent, reserve)
        try:
            grown = self.append(seq, wanted)
            assert grown, "the blocks that were counted are not there"
            seq.computed = found.tokens if partial is not None else full * self.block_size
            seq.confirmed = seq.hit = seq.computed
            self._count_hits(seq, found, partial)
        except Exception:
            for source, _, _ in copies:
                self.finish_copy(source)
            raise
        keys = block_keys(self.block_size, seq, len(seq.tokens) // self.block_size)
        self._computing.update((key, seq.id) for key in keys[full:])
        return copies

    def _take_prefix(
        self,
        seq: Sequence,
        found: PrefixMatch,
        partial: IndexEntry | None,
        extent: int,
        reserve: bool,
    ) -> list[tuple[int, int, int]]:
        """Pin the blocks found on the device, and begin to load those in host memory."""
        index, full = self._index, found.first + len(found.entries)
        for entry in found.entries:
            if entry.block >= 0:
                index.pin(entry)
            else:
                index.host.pin(entry)  # making room must not evict it
        if partial is not None:
            if partial.on_device:
                index.pin(partial)
            else:
                index.host.pin(partial)
        if reserve and extent > len(found.entries):
            seq.extent = self._pool.reserve(extent - len(found.entries))
            seq.extent_base = full
        seq.blocks = [-1] * found.first
        seq.dropped, seq.published = found.first, full
        for entry in found.entries:
            if entry.block < 0:
                self._offload.load(entry, self._allocate_block(self._preferred(seq)), seq)
                index.host.unpin(entry)
            elif entry.load is not None:
                self._offload.wait(entry.load, seq)
            seq.blocks.append(entry.block)
            index.add_user(entry, seq.conversation)
        if partial is None:
            return []
        target = self._allocate_block(self._preferred(seq))
        seq.blocks.append(target)
        if not partial.on_device:  # straight into its own block, even if it is loaded elsewhere too
            self._offload.load(partial, target, seq, private=True)
            index.host.unpin(partial)
            return []
        return [(partial.block, target, found.tokens - full * self.block_size)]

    def finish_copy(self, source: int) -> None:
        """Unpin the source of a copy that was made, or never will be."""
        self._index.unpin(self._index.by_block[source])

    def _count_hits(self, seq: Sequence, found: PrefixMatch, partial: IndexEntry | None) -> None:
        counters = self.counters
        host = sum(self.block_size for e in found.entries if e.load is not None)
        if partial is not None and not partial.on_device:
            host += seq.computed % self.block_size
        if not seq.preemptions:
            seq.hit_host = host
            counters.hit_host_tokens += host
            counters.hit_tokens += seq.hit - host
            counters.prompt_tokens += len(seq.tokens)
        self._conversations.begin(seq)

    def append(self, seq: Sequence, tokens: int) -> bool:
        """Add blocks to a sequence until it has room for `tokens` tokens in all.

        Returns:
            False if there are not enough blocks; those that were added stay.
        """
        for _ in range(self.blocks_for(tokens) - len(seq.blocks)):
            block = self._allocate_block(self._preferred(seq))
            if block < 0:
                return False
            seq.blocks.append(block)
        return True

    def _preferred(self, seq: Sequence) -> int:
        """Return the block that would continue a sequence's blocks without a gap."""
        if seq.extent >= 0:
            return seq.extent + len(seq.blocks) - seq.extent_base
        return seq.blocks[-1] + 1 if seq.blocks else -1

    def _allocate_block(self, preferred: int = -1) -> int:
        while not self._pool.free_blocks:
            if not self._offload.evict_lru() and not self._conversations.break_cheapest():
                return -1
        return self._pool.allocate(preferred)

    def publish(self, seq: Sequence, tokens: int) -> None:
        """Book the first `tokens` tokens of a sequence as computed; index its full blocks.

        Blocks that a sliding window has passed are freed.
        """
        seq.confirmed = tokens
        seq.computed = max(seq.computed, tokens)  # a later step of its own may be in flight
        if tokens >= (seq.published + 1) * self.block_size:
            self._publish_full(seq, tokens)
        if self.window:
            self._free_behind_window(seq, tokens)

    def _publish_full(self, seq: Sequence, tokens: int) -> None:
        size, index = self.block_size, self._index
        hashes = block_keys(size, seq, tokens // size)
        while seq.published < tokens // size:
            at = seq.published
            mine = seq.blocks[at]
            parent = hashes[at - 1] if at else root(seq.salt)
            part = tuple(seq.tokens[at * size : (at + 1) * size])
            entry = index.publish(parent, hashes[at], part, mine)
            self._computing.pop(hashes[at], None)
            if entry.block != mine:
                if entry.load is not None:
                    return  # another's copy is still in flight: next time
                index.pin(entry)  # another was first: share its block and free this one
                self._pool.drop_ref(mine)
                self._pool.free(mine)
                seq.blocks[at] = entry.block
                seq.table_blocks = min(seq.table_blocks, at)
            seq.published += 1
            index.add_user(entry, seq.conversation)

    def _free_behind_window(self, seq: Sequence, tokens: int) -> None:
        first = min(seq.published, self._matcher.first_needed(tokens))
        for at in range(seq.dropped, first):
            self._index.unpin(self._index.by_block[seq.blocks[at]])
            seq.blocks[at] = -1
        seq.dropped = max(seq.dropped, first)

    def free(self, seq: Sequence, trusted: int | None = None) -> None:
        """Free the blocks of a sequence that ended or is preempted; their content stays cached.

        The sequence has no blocks afterwards, whatever fails.

        Args:
            trusted: tokens whose KV is certain, where a step failed; by default all computed ones.
        """
        if trusted is not None:
            seq.computed = min(seq.computed, trusted)
        try:
            self._conversations.record(seq, self._index_rest(seq))
        finally:
            self._free_blocks(seq)

    def free_unrecorded(self, seq: Sequence) -> None:
        """Free the blocks of a sequence without recording them, because `free` failed."""
        self._conversations.end_unrecorded(seq)
        self._free_blocks(seq)

    def _index_rest(self, seq: Sequence) -> list[IndexEntry]:
        """Index the unfinished block of a sequence; return the entries of all it computed."""
        index, size = self._index, self.block_size
        if seq.loading:  # the copy into its own block is not complete
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
                index.add_user(entry, seq.conversation)
        return entries

    def _free_blocks(self, seq: Sequence) -> None:
        """Unpin all blocks of a sequence; the last ones will be evicted first."""
        for block in reversed(seq.blocks[seq.dropped :]):
            self._index.unpin_block(block)
        for key in seq.hashes[seq.published :]:
            if self._computing.get(key) == seq.id:
                del self._computing[key]
        self._pool.unreserve(seq.extent)
        seq.blocks, seq.computed, seq.published, seq.dropped, seq.extent = [], 0, 0, 0, -1
        seq.table_blocks = seq.confirmed = 0


__all__ = ["SequenceBlocks"]
