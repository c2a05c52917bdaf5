"""Records of conversations in the KV cache."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from drawloom.engine.kvcache.entries import IndexEntry


@dataclass(slots=True)
class CachedConversation:
    """Record the blocks of a conversation and the tokens it has computed.

    Attributes:
        entries: its chain of blocks.
        tokens: all tokens whose KV was ever computed; an array, because a list takes 36 bytes each.
        expires: when its lease ends, in seconds.
        leased: how many of the first entries are leased.
        version: version of its lease; older items in the heaps of `LeaseOrder` are stale.
        broken: when a broken lease would have ended; 0 if none was broken.
        active: sequences of it that run.
    """

    entries: list[IndexEntry] = field(default_factory=list)
    tokens: "array[int]" = field(default_factory=lambda: array("i"))
    expires: float = 0.0
    leased: int = 0
    version: int = 0
    broken: float = 0.0
    active: int = 0


def common_prefix(mine: list[int], theirs: Sequence[int]) -> int:
    """Return the length of the common prefix of two token lists."""
    length = min(len(mine), len(theirs))
    if tuple(mine[:length]) == tuple(theirs[:length]):
        return length
    return next(n for n in range(length) if mine[n] != theirs[n])


__all__ = ["CachedConversation", "common_prefix"]
