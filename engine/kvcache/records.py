"""Records of conversations in the KV cache, and counts over all of them."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from drawloom.engine.kvcache.entries import Entry


@dataclass(slots=True)
class CachedConversation:
    """What a conversation left behind: its chain of entries and how far it was ever computed.

    Its tokens are an array: as a list they would take 36 bytes each. `version` outdates what the
    heaps of leases still say; `broken` is until when a lease that was broken would have held.
    """

    entries: list[Entry] = field(default_factory=list)
    tokens: "array[int]" = field(default_factory=lambda: array("i"))
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
    demotions: int = 0
    saved_blocks: int = 0
    loaded_blocks: int = 0


def common(mine: list[int], theirs: Sequence[int]) -> int:
    """How many tokens two lists begin with alike."""
    length = min(len(mine), len(theirs))
    if tuple(mine[:length]) == tuple(theirs[:length]):
        return length
    return next(n for n in range(length) if mine[n] != theirs[n])


__all__ = ["CacheCounters", "CachedConversation", "common"]
