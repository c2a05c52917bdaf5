"""KV cache of programs: prefix reuse, copy-on-write, soft leases, two tiers.

The last, partly filled block of a finished sequence is indexed like a full one; a sequence that
continues from it gets a copy (copy-on-write). Blocks that are only in host memory are loaded before
a sequence runs, while it is parked; no step waits for them.

Blocks are taken in this order: free; unleased, least recently used first; of expired leases;
of leases in force, lowest value per block first. A block that a sequence holds is never taken, and
a running sequence may take everything else: nobody waits for a lease (hard pins deadlocked every
engine that shipped them). With host memory, blocks that a conversation loses are spilled there.
"""

from collections.abc import Iterable
from dataclasses import asdict

from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.keys import root
from drawloom.engine.kvcache.sequence_blocks import SequenceBlocks
from drawloom.engine.sequence import SamplingParams, Sequence
from drawloom.engine.stats import CacheStats
from drawloom.leases import KVReply

_NO_PARAMS = SamplingParams(max_tokens=0)


class KVCache(SequenceBlocks):
    """Decide which block holds which tokens. Pure bookkeeping: it never touches a tensor.

    This class is the interface of the package. Sequences go through `match`, `allocate`, `append`,
    `publish` and `free` of its base class; here are conversations and copies between the tiers.

    Args:
        blocks: blocks of the device.
        block_size: tokens a block.
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
        super().__init__(
            blocks,
            block_size,
            lease_limit=int(blocks * lease_budget),
            host_blocks=host_blocks,
            window=window,
            save_leased=save_leased,
        )

    @property
    def copies_in_flight(self) -> int:
        """Return the number of saves and loads that are not complete."""
        return self._offload.in_flight

    @property
    def spill(self) -> bool:
        """Return whether evicted blocks are written back to host memory.

        Set it when copying a block both ways costs less than computing it again.
        """
        return self._offload.spill

    @spill.setter
    def spill(self, worthwhile: bool) -> None:
        self._offload.spill = worthwhile

    def stats(self) -> CacheStats:
        """Return the present gauges and counters."""
        return CacheStats(
            **asdict(self.counters),
            free_blocks=self._pool.free_blocks,
            held_blocks=self.total_blocks - self.available,
            leased_blocks=self._index.leased,
            total_blocks=self.total_blocks,
            host_blocks=self._index.host.used,
            total_host_blocks=self._index.host.count,
            conversations=len(self._conversations),
        )

    # --- conversations --------------------------------------------------------------------

    def lease(self, conversation: str, now: float, ttl: float, value: float) -> KVReply:
        """Lease the blocks of a conversation, in place of its last lease.

        Args:
            now: present time, in seconds.
            ttl: seconds that the lease lasts.
            value: seconds that having the blocks saves; leases break by value per block.

        Returns:
            `MISSING` if there are none, `CLIPPED` if the budget is enough for a part only.
        """
        return self._conversations.lease(conversation, now, ttl, value)

    def release(self, conversation: str, *, evict: bool = True) -> KVReply:
        """End a conversation.

        Args:
            evict: free the blocks that only it used at once.
        """
        return self._conversations.release(conversation, evict=evict)

    def fork(self, parent: str, child: str) -> KVReply:
        """Begin a conversation as a copy of another; blocks are shared, not copied."""
        return self._conversations.fork(parent, child)

    def demote(self, conversation: str) -> KVReply:
        """Copy a conversation to host memory; then its device blocks are evicted first.

        Returns:
            `DEFERRED` while it runs; `CLIPPED` if host memory is full, and its lease stays.
        """
        return self._conversations.demote(conversation)

    def prefetch(self, conversation: str) -> KVReply:
        """Load the blocks of a conversation that are only in host memory, breaking no lease.

        Returns:
            `CLIPPED` if there is no room for all of them.
        """
        return self._conversations.prefetch(conversation)

    def truncate(self, conversation: str, tokens: list[int]) -> None:
        """Release the blocks of a conversation that its next prompt does not continue."""
        self._conversations.truncate(conversation, tokens)

    def expire(self, now: float) -> None:
        """End the leases whose time is over."""
        self._conversations.expire(now)

    def block_locations(self, conversation: str) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Return the cached tokens of a conversation and where their blocks are.

        Returns:
            The tokens, and ``(device block, host block)`` for each block, -1 where it is not; None
            if the conversation is unknown.
        """
        return self._conversations.block_locations(conversation)

    def import_tokens(self, conversation: str, tokens: list[int], salt: bytes) -> list[int]:
        """Index tokens as a conversation's, as far as there is room without breaking a lease.

        Returns:
            The blocks, which must be written before the next step.
        """
        seq = Sequence(f"import:{conversation}", conversation, tokens, _NO_PARAMS, salt)
        room = self._pool.free_blocks + len(self._index.lru)
        count = min(len(tokens), room * self.block_size)
        seq.tokens = tokens[:count]
        grown = self.append(seq, count)
        assert grown, "the blocks that were counted are not there"
        blocks = list(seq.blocks)
        self.publish(seq, count)
        self.free(seq)
        return blocks

    def remove_blocks(self, blocks: list[int]) -> None:
        """Forget the content of device blocks that could not be written."""
        self._index.remove_blocks(blocks)

    def remove_all(self) -> None:
        """Forget all blocks that no sequence holds, because the weights changed."""
        self._conversations.release_idle()
        for entry in list(self._index.known.values()):
            if entry.block < 0 or not self._pool.refcount(entry.block):
                self._index.remove(entry)

    def evict_all(self) -> None:
        """Evict all blocks from the device, because its memory is about to be given back."""
        self._conversations.unlease_all()
        for entry in list(self._index.by_block.values()):
            if entry.block >= 0 and self._pool.refcount(entry.block):
                self._index.remove(entry)
            elif entry.block >= 0 and not entry.dead:
                self._offload.evict(entry)

    # --- copies between the tiers ---------------------------------------------------------

    def take_copies(self) -> Copies:
        """Return the copies decided since the last call, for the runner to carry out."""
        return self._offload.take_copies()

    def finish_save(self, block: int) -> None:
        """Book that a device block is in host memory, too."""
        self._conversations.finish_save(self._offload.finish_save(block))

    def finish_load(self, block: int) -> None:
        """Book that a device block was loaded: sequences that waited for it may run."""
        self._offload.finish_load(block)

    def cancel_copies(self, copies: Copies) -> list[Sequence]:
        """Book copies that failed. Blocks that exist in one tier only because of them are lost.

        Returns:
            The sequences that waited for a load. They hold blocks without content: each must be
            freed, with the tokens that are certain.
        """
        waited: dict[Sequence, None] = {}
        for _, block in copies.loads:
            waited |= dict.fromkeys(self._offload.cancel_load(block))
        for block, _ in copies.saves:
            self._conversations.cancel_save(self._offload.cancel_save(block))
        for _, host_block in copies.spills:
            self._offload.cancel_spill(host_block)
        return list(waited)

    def check(self, sequences: list[Sequence], salts: Iterable[bytes] = (b"",)) -> None:
        """Assert every invariant of the cache (for tests).

        Args:
            sequences: all that have blocks.
            salts: all that were ever used.

        Raises:
            AssertionError: if one does not hold.
        """
        held: dict[int, int] = {}
        for seq in sequences:
            for block in seq.blocks[seq.dropped :]:
                held[block] = held.get(block, 0) + 1
        self._offload.check(held, {root(salt) for salt in salts})
        self._conversations.check()
        assert set(self._computing.values()) <= {seq.id for seq in sequences}


__all__ = ["KVCache"]
