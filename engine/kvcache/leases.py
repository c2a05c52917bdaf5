"""Conversations and the leases on what they left behind.

A *lease* is an attribute of kept blocks, not a lock: it ends with its time, is broken by value
per block when nothing else is left to reclaim, and never keeps a running sequence waiting. With
host memory behind the device, a conversation may also be demoted while nobody needs it, and
prefetched before it returns.
"""

from array import array

from drawloom.engine.kvcache.entries import Entry
from drawloom.engine.kvcache.lease_order import LeaseOrder
from drawloom.engine.kvcache.prefix_index import BlockIndex
from drawloom.engine.kvcache.records import CacheCounters, CachedConversation, common
from drawloom.engine.sequence import Sequence
from drawloom.leases import KVReply, LeaseStatus

_SLACK = 64


class ConversationLeases:
    """What conversations left behind in an index, and for how long it is kept.

    Args:
        limit: most blocks under lease.
        save_leased: copy leased blocks to host memory before their eviction requires it.
    """

    def __init__(
        self, index: BlockIndex, counters: CacheCounters, limit: int, save_leased: bool
    ) -> None:
        self.index, self.counters = index, counters
        self._limit, self._save_leased = limit, save_leased
        self._records: dict[str, CachedConversation] = {}
        self._leases = LeaseOrder(self._records)
        self._now = 0.0
        self._demoting: dict[Entry, str] = {}
        self._most = _SLACK

    def __len__(self) -> int:
        return len(self._records)

    # --- a sequence comes and goes --------------------------------------------------------

    def began(self, seq: Sequence) -> None:
        """A sequence takes its conversation up again; what it lost of it is counted."""
        record = self._records.get(seq.conversation)
        if record is None:
            return
        counters = self.counters
        record.active += 1
        lost = max(0, min(common(seq.tokens, record.tokens), seq.reusable) - seq.hit)
        counters.recomputed_tokens += lost
        if lost and record.broken > self._now:
            counters.lease_regrets += 1
            counters.regret_tokens += lost
        record.broken = 0.0

    def left(self, seq: Sequence) -> None:
        """A sequence ended, and nothing of it can be remembered."""
        record = self._records.get(seq.conversation)
        if record is not None:
            record.active = max(0, record.active - 1)

    def remember(self, seq: Sequence, entries: list[Entry]) -> None:
        """A sequence ended and left these behind, its computed beginning."""
        if seq.released:
            for entry in entries:
                entry.users.discard(seq.conversation)
            return
        record = self._records.pop(seq.conversation, None) or CachedConversation()
        self._records[seq.conversation] = record  # the last one is the one used last
        record.active = max(0, record.active - 1)
        mine = set(map(id, entries))
        follows = {entry.parent: entry for entry in entries}
        superseded = [entry for entry in record.entries if id(entry) not in mine]
        for entry in superseded:  # a newer turn took another path
            self._leave_behind(entry, seq.conversation)
        for entry in reversed(superseded):
            if entry.begins(follows.get(entry.parent)):
                self.index.retire(entry)
        record.entries = entries
        known = len(record.tokens)
        if seq.computed >= known or common(seq.tokens, record.tokens) < known:
            record.tokens = array("i", seq.tokens[: seq.computed])
        record.leased = 0
        for at, entry in enumerate(entries):  # a lease covers a beginning, without gaps
            if seq.conversation in entry.leases and record.leased == at:
                record.leased += 1
            else:
                self.index.unlease(entry, seq.conversation)
        if len(self._records) > self._most:
            self._sweep()

    def _sweep(self) -> None:
        """Drop the records that are of no use any more.

        These are the conversations that lost blocks and have none left that only they use, and of
        all others as many as there are more than blocks, the longest unused first: one-off
        requests would leave records for ever otherwise. None that runs or has a lease is dropped.
        A conversation that returns finds its KV by the hashes of its tokens, with or without one.
        """
        idle = [name for name, record in self._records.items() if self._idle(record)]
        for name in [name for name in idle if self._lost(name)]:
            self._drop(name)
        idle = [name for name in idle if name in self._records]
        index = self.index
        for name in idle[: max(0, len(self._records) - index.pool.count - index.host_total)]:
            self._drop(name)
        self._most = len(self._records) * 3 // 2 + _SLACK

    def _idle(self, record: CachedConversation) -> bool:
        return not record.active and not record.leased and record.broken <= self._now

    def _lost(self, name: str) -> bool:
        """Whether a conversation lost blocks, and all it has left is used by others, too."""
        entries = self._records[name].entries
        alive = [entry for entry in entries if not entry.dead]
        return len(alive) < len(entries) and all(len(entry.users) > 1 for entry in alive)

    def _drop(self, name: str) -> None:
        for entry in self._records.pop(name).entries:
            entry.users.discard(name)
            self._demoting.pop(entry, None)

    def rewind(self, conversation: str, tokens: list[int]) -> None:
        """Give back what a conversation holds behind the tokens that it goes on from.

        Its client rewrote what came last, dropped it, or began anew: nobody is expected to ask for
        it again, so it is the first to be reclaimed, last block first, whatever lease it had. It
        is not forgotten before that: some clients do come back.
        """
        record = self._records.get(conversation)
        if record is None or record.active or self.index.windowed:
            return  # behind a sliding window, blocks leave by themselves
        shared, at, kept = common(tokens, record.tokens), 0, 0
        for entry in record.entries:
            if at >= shared:
                break
            at += len(entry.tokens)
            kept += 1
        if kept == len(record.entries):
            return
        left, record.entries = record.entries[kept:], record.entries[:kept]
        record.leased = min(record.leased, kept)
        del record.tokens[at:]
        for entry in left:
            self._leave_behind(entry, conversation)

    def _leave_behind(self, entry: Entry, conversation: str) -> None:
        """Give up a block that a conversation has no use for any more."""
        self._demoting.pop(entry, None)
        self.index.unlease(entry, conversation)
        entry.users.discard(conversation)
        if not (entry.users or entry.shared):
            self.index.reclaim_next(entry)

    # --- verbs for programs ---------------------------------------------------------------

    def lease(self, conversation: str, now: float, ttl: float, value: float) -> KVReply:
        """Keep a conversation's blocks, if possible, for `ttl` seconds. A new lease replaces the
        old.

        `value` is the seconds that having them would save; leases are broken by value per block.
        """
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
        """End a conversation. With `evict`, blocks that only it used are free at once."""
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
            idle = entry.block < 0 or not self.index.pool.refs(entry.block) or entry.saving
            if idle and not index.children.get(entry.key):
                index.forget(entry)
        del self._records[conversation]
        return KVReply(LeaseStatus.ACCEPTED, covered)

    def fork(self, parent: str, child: str) -> KVReply:
        """A new conversation that begins as a copy of another; blocks are shared, not copied."""
        record = self._records.get(parent)
        if record is None:
            return KVReply(LeaseStatus.MISSING, 0)
        if child not in self._records:
            twin = CachedConversation(list(record.entries), record.tokens[:])
            self._records[child] = twin
            for entry in record.entries:
                self.index.use(entry, child)
        return KVReply(LeaseStatus.ACCEPTED, len(record.tokens))

    def demote(self, conversation: str) -> KVReply:
        """Copy a conversation to host memory while nobody needs it; then its device blocks are the
        first to be reclaimed. `DEFERRED` while it runs; `CLIPPED` when host memory is full, and
        then its lease holds on."""
        record = self._records.get(conversation)
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
                    self._demoting[entry] = conversation
                self._give_way(entry, conversation)
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

    def saved(self, entry: Entry) -> None:
        """A block's copy is in host memory; if that was to demote it, it gives way now."""
        conversation = self._demoting.pop(entry, None)
        if conversation is not None and not entry.dead:
            self._give_way(entry, conversation)

    def not_saved(self, entry: Entry) -> None:
        """A block's copy failed: it is not demoted."""
        self._demoting.pop(entry, None)

    def _give_way(self, entry: Entry, conversation: str) -> None:
        self.index.unlease(entry, conversation, front=True)
        self.index.reclaim_next(entry, host=False)

    def prefetch(self, conversation: str) -> KVReply:
        """Load back what of a conversation is only in host memory, without breaking any lease.
        `CLIPPED` when there is no room for all of it."""
        record = self._records.get(conversation)
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
                block = index.take_kept()
                if block >= 0 and not entry.dead:
                    index.load(entry, block, None)
                elif block >= 0:
                    index.pool.drop(block)
                    index.pool.give_back(block)
                index.unpin(entry)
                if entry.dead or entry.block < 0:
                    return KVReply(LeaseStatus.CLIPPED, covered)
            covered += len(entry.tokens)
        return KVReply(LeaseStatus.ACCEPTED, covered)

    def expire(self, now: float) -> None:
        """End the leases whose time is over; their blocks count as unleased and just used."""
        self._now = now
        for name in self._leases.expired(now):
            self._unlease(name, self._records[name])

    def contents(self, conversation: str) -> tuple[list[int], list[tuple[int, int]]] | None:
        """The tokens of a conversation and, block by block, ``(device block, host block)`` of them,
        either -1; None for one that is unknown or incomplete."""
        record = self._records.get(conversation)
        if record is None:
            return None
        tokens: list[int] = []
        places = []
        for entry in record.entries:
            if entry.dead or entry.load is not None:
                break
            tokens += entry.tokens
            places.append((entry.block, entry.host))
        return tokens, places

    # --- when there is no room left -------------------------------------------------------

    def break_cheapest(self) -> bool:
        """Break the lease of least value per block that frees any; False if none does."""
        refs = self.index.pool.refs
        name = self._leases.cheapest(lambda e: e.block < 0 or not refs(e.block))
        if name is None:
            return False
        self._break(name, self._records[name])
        return True

    def _break(self, name: str, record: CachedConversation) -> None:
        self.counters.lease_breaks += 1
        self._unlease(name, record, front=True)
        record.broken = record.expires

    def clear(self) -> None:
        """Release every conversation that does not run."""
        for name in [n for n, r in self._records.items() if not r.active]:
            self.release(name)

    def unlease_all(self) -> None:
        for name, record in self._records.items():
            self._unlease(name, record)

    def _unlease(self, name: str, record: CachedConversation, front: bool = False) -> None:
        """End a lease, its tail the first to become the least recently used; with `front` all of
        it is reclaimed next, tail first."""
        leased = record.entries[: record.leased]
        for entry in leased if front else reversed(leased):
            self.index.unlease(entry, name, front=front)
        record.leased = 0

    def check(self) -> None:
        """For tests. Raises `AssertionError`."""
        assert self.index.leased <= self._limit
        for name, record in self._records.items():
            for entry in record.entries[: record.leased]:
                assert name in entry.leases or entry.dead or entry.block < 0


__all__ = ["ConversationLeases"]
