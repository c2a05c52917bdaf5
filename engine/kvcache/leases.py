"""Records of conversations in the KV cache, and the leases on their blocks.

A *lease* is an attribute of kept blocks, not a lock: it ends at its time, is broken in order of
value per block when nothing else is left to evict, and never keeps a running sequence waiting. With
host memory behind the device, a conversation may also be demoted while nobody needs it, and
prefetched before it returns.
"""

from array import array

from drawloom.engine.kvcache.entries import IndexEntry
from drawloom.engine.kvcache.lease_order import LeaseOrder
from drawloom.engine.kvcache.offload import Offload
from drawloom.engine.kvcache.records import CachedConversation, common_prefix
from drawloom.engine.sequence import Sequence
from drawloom.engine.stats import CacheCounters
from drawloom.leases import KVReply, LeaseStatus

_SLACK = 64


class ConversationLeases:
    """Record which blocks each conversation has, and lease, demote and release them.

    Args:
        limit: most blocks under lease.
        save_leased: copy leased blocks to host memory before their eviction requires it.
    """

    def __init__(
        self, offload: Offload, counters: CacheCounters, limit: int, save_leased: bool
    ) -> None:
        self.offload, self.index, self.counters = offload, offload.index, counters
        self._limit, self._save_leased = limit, save_leased
        self._records: dict[str, CachedConversation] = {}
        self._leases = LeaseOrder(self._records)
        self._now = 0.0
        self._demoting: dict[IndexEntry, str] = {}
        self._prune_above = _SLACK

    def __len__(self) -> int:
        return len(self._records)

    # --- sequences ------------------------------------------------------------------------

    def begin(self, seq: Sequence) -> None:
        """Note that a sequence of a conversation starts, and count the KV that had been lost."""
        record = self._records.get(seq.conversation)
        if record is None:
            return
        counters = self.counters
        record.active += 1
        lost = max(0, min(common_prefix(seq.tokens, record.tokens), seq.reusable) - seq.hit)
        counters.recomputed_tokens += lost
        if lost and record.broken > self._now:
            counters.lease_regrets += 1
            counters.regret_tokens += lost
        record.broken = 0.0

    def end_unrecorded(self, seq: Sequence) -> None:
        """Note that a sequence ended of which no block can be recorded."""
        record = self._records.get(seq.conversation)
        if record is not None:
            record.active = max(0, record.active - 1)

    def record(self, seq: Sequence, entries: list[IndexEntry]) -> None:
        """Record the blocks of a sequence that ended as those of its conversation.

        Blocks that the conversation had and does not continue are released.

        Args:
            entries: the computed prefix of the sequence.
        """
        if seq.released:
            for entry in entries:
                entry.users.discard(seq.conversation)
            return
        record = self._records.pop(seq.conversation, None) or CachedConversation()
        self._records[seq.conversation] = record  # the last one is the most recently used
        record.active = max(0, record.active - 1)
        mine = set(map(id, entries))
        follows = {entry.parent: entry for entry in entries}
        superseded = [entry for entry in record.entries if id(entry) not in mine]
        for entry in superseded:  # a newer turn took another path
            self._release_entry(entry, seq.conversation)
        for entry in reversed(superseded):
            if entry.is_prefix_of(follows.get(entry.parent)):
                self.index.remove_unused(entry)
        record.entries = entries
        known = len(record.tokens)
        if seq.computed >= known or common_prefix(seq.tokens, record.tokens) < known:
            record.tokens = array("i", seq.tokens[: seq.computed])
        record.leased = 0
        for at, entry in enumerate(entries):  # a lease covers a prefix without gaps
            if seq.conversation in entry.leases and record.leased == at:
                record.leased += 1
            else:
                self.index.unlease(entry, seq.conversation)
        if len(self._records) > self._prune_above:
            self._prune()

    def _prune(self) -> None:
        """Delete the records that are of no use any more.

        These are conversations that lost blocks and have none left that only they use; and, if
        there are more records than blocks, the least recently used: one-off requests would
        accumulate records for ever. Conversations that run or have a lease stay. A conversation
        that returns finds its KV by the hashes of its tokens, with or without a record.
        """
        idle = [name for name, record in self._records.items() if self._idle(record)]
        for name in [name for name in idle if self._lost(name)]:
            self._delete(name)
        idle = [name for name in idle if name in self._records]
        blocks = self.index.pool.count + self.index.host.count
        for name in idle[: max(0, len(self._records) - blocks)]:
            self._delete(name)
        self._prune_above = len(self._records) * 3 // 2 + _SLACK

    def _idle(self, record: CachedConversation) -> bool:
        return not record.active and not record.leased and record.broken <= self._now

    def _lost(self, name: str) -> bool:
        """Return whether a conversation lost blocks and shares all that it has left."""
        entries = self._records[name].entries
        alive = [entry for entry in entries if not entry.dead]
        return len(alive) < len(entries) and all(len(entry.users) > 1 for entry in alive)

    def _delete(self, name: str) -> None:
        for entry in self._records.pop(name).entries:
            entry.users.discard(name)
            self._demoting.pop(entry, None)

    def truncate(self, conversation: str, tokens: list[int]) -> None:
        """Release the blocks of a conversation that its next prompt does not continue.

        Its client rewrote, dropped or restarted its history, and nobody is expected to ask for the
        rest again. So the rest is evicted first, last block first, whatever its lease. It stays
        indexed until then: some clients do return to it.

        Args:
            tokens: the next prompt.
        """
        record = self._records.get(conversation)
        if record is None or record.active or self.index.windowed:
            return  # behind a sliding window, blocks leave by themselves
        shared, at, kept = common_prefix(tokens, record.tokens), 0, 0
        for entry in record.entries:
            if at >= shared:
                break
            at += len(entry.tokens)
            kept += 1
        if kept == len(record.entries):
            return
        rest, record.entries = record.entries[kept:], record.entries[:kept]
        record.leased = min(record.leased, kept)
        del record.tokens[at:]
        for entry in rest:
            self._release_entry(entry, conversation)

    def _release_entry(self, entry: IndexEntry, conversation: str) -> None:
        """Release one block of a conversation; it is evicted next if no other has used it."""
        self._demoting.pop(entry, None)
        self.index.unlease(entry, conversation)
        entry.users.discard(conversation)
        if not (entry.users or entry.shared):
            self.index.evict_next(entry)

    # --- commands -------------------------------------------------------------------------

    def lease(self, conversation: str, now: float, ttl: float, value: float) -> KVReply:
        """Lease the blocks of a conversation; see `KVCache.lease`."""
        record = self._records.get(conversation)
        if record is None or not record.entries:
            return KVReply(LeaseStatus.MISSING, 0)
        record.leased = covered = 0
        for entry in record.entries:
            if entry.dead or entry.block < 0:
                break
            if not entry.leases and self.index.leased >= self._limit:
                break
            self.index.lease(entry, conversation)
            self._demoting.pop(entry, None)
            record.leased += 1
            covered += len(entry.tokens)
        self._leases.add(conversation, now + ttl, value)
        if self._save_leased:
            self._save(record.entries)
        whole = record.leased == len(record.entries)
        self.counters.lease_grants += 1
        self.counters.lease_clips += not whole
        return KVReply(LeaseStatus.ACCEPTED if whole else LeaseStatus.CLIPPED, covered)

    def release(self, conversation: str, *, evict: bool = True) -> KVReply:
        """End a conversation; see `KVCache.release`."""
        record = self._records.get(conversation)
        if record is None:
            return KVReply(LeaseStatus.MISSING, 0)
        covered, index = 0, self.index
        for entry in reversed(record.entries):
            covered += len(entry.tokens)
            index.unlease(entry, conversation)
            entry.users.discard(conversation)
            self._demoting.pop(entry, None)
            if not evict or entry.dead or entry.users or entry.shared:
                continue
            idle = entry.block < 0 or not index.pool.refcount(entry.block) or entry.saving
            if idle and not index.children.get(entry.key):
                index.remove(entry)
        del self._records[conversation]
        return KVReply(LeaseStatus.ACCEPTED, covered)

    def fork(self, parent: str, child: str) -> KVReply:
        """Record a conversation that begins as a copy of another; see `KVCache.fork`."""
        record = self._records.get(parent)
        if record is None:
            return KVReply(LeaseStatus.MISSING, 0)
        if child not in self._records:
            twin = CachedConversation(list(record.entries), record.tokens[:])
            self._records[child] = twin
            for entry in record.entries:
                self.index.add_user(entry, child)
        return KVReply(LeaseStatus.ACCEPTED, len(record.tokens))

    def demote(self, conversation: str) -> KVReply:
        """Copy a conversation to host memory; see `KVCache.demote`."""
        record = self._records.get(conversation)
        if record is None or not self.index.host.count:
            return KVReply(LeaseStatus.MISSING, 0)
        if record.active:
            return KVReply(LeaseStatus.DEFERRED, 0)
        covered = self._save(record.entries)
        whole = covered == len(record.entries)
        if whole:
            record.leased = 0
            for entry in record.entries:
                if entry.saving:
                    self._demoting[entry] = conversation
                self._evict_next(entry, conversation)
        self.counters.demotions += 1
        done = sum(len(entry.tokens) for entry in record.entries[:covered])
        return KVReply(LeaseStatus.ACCEPTED if whole else LeaseStatus.CLIPPED, done)

    def _save(self, entries: list[IndexEntry]) -> int:
        """Begin to copy entries to host memory, in order; return how many are or will be there."""
        count = 0
        for entry in entries:
            if entry.dead or not self.offload.save(entry):
                break
            count += 1
        return count

    def finish_save(self, entry: IndexEntry) -> None:
        """Let a block whose copy is complete be evicted next, if it was to be demoted."""
        conversation = self._demoting.pop(entry, None)
        if conversation is not None and not entry.dead:
            self._evict_next(entry, conversation)

    def cancel_save(self, entry: IndexEntry) -> None:
        """Leave a block where it is whose copy failed."""
        self._demoting.pop(entry, None)

    def _evict_next(self, entry: IndexEntry, conversation: str) -> None:
        self.index.unlease(entry, conversation, front=True)
        self.index.evict_next(entry, host=False)

    def prefetch(self, conversation: str) -> KVReply:
        """Load a conversation from host memory; see `KVCache.prefetch`."""
        record = self._records.get(conversation)
        if record is None:
            return KVReply(LeaseStatus.MISSING, 0)
        index, covered = self.index, 0
        record.entries = [e for e in record.entries if not e.dead]
        for entry in record.entries:  # so that making room for the tail evicts no head
            self._demoting.pop(entry, None)
            if entry.block in index.lru:
                index.lru.move_to_end(entry.block)
        for entry in record.entries:
            if entry.block < 0 and not self._load(entry):
                return KVReply(LeaseStatus.CLIPPED, covered)
            covered += len(entry.tokens)
        return KVReply(LeaseStatus.ACCEPTED, covered)

    def _load(self, entry: IndexEntry) -> bool:
        """Begin to load a block; return False if there is no room without breaking a lease."""
        index = self.index
        index.host.pin(entry)
        block = self.offload.allocate_unleased()
        if block >= 0 and not entry.dead:
            self.offload.load(entry, block, None)
        elif block >= 0:
            index.pool.drop_ref(block)
            index.pool.free(block)
        index.host.unpin(entry)
        return entry.block >= 0 and not entry.dead

    def expire(self, now: float) -> None:
        """End the leases whose time is over; their blocks count as unleased and just used."""
        self._now = now
        for name in self._leases.pop_expired(now):
            self._unlease(name, self._records[name])

    def block_locations(self, conversation: str) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Return the cached tokens of a conversation and where their blocks are.

        Returns:
            The tokens, and ``(device block, host block)`` for each block, -1 where it is not; None
            if there is no record.
        """
        record = self._records.get(conversation)
        if record is None:
            return None
        tokens: list[int] = []
        locations = []
        for entry in record.entries:
            if entry.dead or entry.load is not None:
                break
            tokens += entry.tokens
            locations.append((entry.block, entry.host_block))
        return tokens, locations

    # --- pressure -------------------------------------------------------------------------

    def break_cheapest(self) -> bool:
        """Break the lease of least value per block that frees any; return False if none does."""
        refcount = self.index.pool.refcount
        name = self._leases.pop_cheapest(lambda e: e.block < 0 or not refcount(e.block))
        if name is None:
            return False
        record = self._records[name]
        self.counters.lease_breaks += 1
        self._unlease(name, record, front=True)
        record.broken = record.expires
        return True

    def release_idle(self) -> None:
        """Release every conversation that does not run."""
        for name in [n for n, r in self._records.items() if not r.active]:
            self.release(name)

    def unlease_all(self) -> None:
        """End every lease."""
        for name, record in self._records.items():
            self._unlease(name, record)

    def _unlease(self, name: str, record: CachedConversation, front: bool = False) -> None:
        """End a lease; its last blocks are evicted before its first.

        Args:
            front: before all other blocks; else they count as just used.
        """
        leased = record.entries[: record.leased]
        for entry in leased if front else reversed(leased):
            self.index.unlease(entry, name, front=front)
        record.leased = 0

    def check(self) -> None:
        """Assert the invariants of leases (for tests)."""
        assert self.index.leased <= self._limit
        for name, record in self._records.items():
            for entry in record.entries[: record.leased]:
                assert name in entry.leases or entry.dead or entry.block < 0


__all__ = ["ConversationLeases"]
