"""Search for the cached prefix of a sequence."""

from itertools import islice

from drawloom.engine.kvcache.entries import IndexEntry, PrefixMatch
from drawloom.engine.kvcache.keys import block_keys, root
from drawloom.engine.kvcache.prefix_index import PrefixIndex
from drawloom.engine.kvcache.records import common_prefix
from drawloom.engine.sequence import Sequence

_PARTIAL_BLOCKS_SEARCHED = 16


class PrefixMatcher:
    """Find which blocks of a sequence are cached, in either tier.

    Args:
        window: tokens that a token attends to, itself included; 0 is all.
    """

    def __init__(self, index: PrefixIndex, block_size: int, window: int) -> None:
        self.index, self.block_size, self.window = index, block_size, window

    def first_needed(self, tokens: int) -> int:
        """Return the number of the first block that the token after `tokens` tokens attends to."""
        return max(0, tokens - self.window + 1) // self.block_size if self.window else 0

    def match(self, seq: Sequence) -> PrefixMatch:
        """Find the cached prefix of a sequence, without changing anything.

        The last token is never part of it, because its logits are needed.
        """
        size, limit = self.block_size, seq.reusable
        hashes, known = block_keys(size, seq, limit // size), self.index.known
        full = self._full(hashes[: limit // size])
        first = min(full, self.first_needed(full * size))
        entries = [known[key] for key in hashes[first:full]]
        parent = hashes[full - 1] if full else root(seq.salt)
        partial, shared = self._partial(parent, seq.tokens[full * size : limit][:size])
        return PrefixMatch(first, entries, partial, full * size + shared)

    def next_key(self, seq: Sequence) -> bytes | None:
        """Return the key of the first reusable block that is not cached; None if all are."""
        count = seq.reusable // self.block_size
        hashes = block_keys(self.block_size, seq, count)
        full = self._full(hashes[:count])
        return hashes[full] if full < len(hashes) else None

    def _full(self, hashes: list[bytes]) -> int:
        """Count the full blocks of the cached prefix.

        Behind a sliding window only the last of them need to be cached.
        """
        known = self.index.known
        if not self.window:
            return next((n for n, key in enumerate(hashes) if key not in known), len(hashes))
        best = missing = 0  # `missing`: first block after the last one that is not there
        for count in range(1, len(hashes) + 1):
            if hashes[count - 1] not in known:
                missing = count
            elif missing <= self.first_needed(count * self.block_size):
                best = count
        return best

    def _partial(self, parent: bytes, rest: list[int]) -> tuple[IndexEntry | None, int]:
        """Find the block behind `parent` that shares most tokens with `rest`, and their number."""
        best, length = None, 0
        children = self.index.children.get(parent, {})
        for entry in islice(reversed(children.values()), _PARTIAL_BLOCKS_SEARCHED):
            shared = common_prefix(rest, entry.tokens)
            if shared > length:
                best, length = entry, shared
        return best, length


__all__ = ["PrefixMatcher"]
