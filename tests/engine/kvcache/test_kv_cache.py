"""Reuse, eviction, leases and release of cached blocks."""

from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.sequence import SamplingParams, Sequence, Status
from drawloom.leases import LeaseStatus

SIZE = 4


def _turn(cache: KVCache, conversation: str, tokens: list[int]) -> Sequence:
    """Compute a prompt as a batch would, and end."""
    seq = Sequence(f"{conversation}-{len(tokens)}", conversation, tokens, SamplingParams())
    copies = cache.allocate(seq, cache.blocks_for(len(tokens)), False)
    assert copies is not None, "no room"
    for source, _, _ in copies:
        cache.finish_copy(source)
    cache.publish(seq, len(tokens))
    cache.free(seq)
    seq.status = Status.FINISHED
    return seq


def _hit(cache: KVCache, tokens: list[int]) -> int:
    return cache.match(Sequence("probe", "probe", [*tokens, 0], SamplingParams())).tokens


def test_leased_blocks_are_evicted_last() -> None:
    cache = KVCache(8, SIZE, lease_budget=1.0)
    kept, lost = [1] * 15, [2] * 15
    _turn(cache, "kept", kept)
    _turn(cache, "lost", lost)
    assert cache.lease("kept", 0.0, 10.0, 1.0).status is LeaseStatus.ACCEPTED
    _turn(cache, "other", [3] * 16)
    assert _hit(cache, kept) == 15
    assert _hit(cache, lost) == 0


def test_a_running_sequence_may_evict_every_leased_block() -> None:
    cache = KVCache(8, SIZE, lease_budget=1.0)
    _turn(cache, "a", [1] * 30)
    cache.lease("a", 0.0, 1e9, 1e9)
    _turn(cache, "b", [2] * 31)
    assert cache.counters.lease_breaks == 1
    assert cache.stats().leased_blocks == 0


def test_the_least_valuable_lease_breaks_first() -> None:
    cache = KVCache(8, SIZE, lease_budget=1.0)
    _turn(cache, "cheap", [1] * 16)
    _turn(cache, "dear", [2] * 16)
    cache.lease("cheap", 0.0, 100.0, 1.0)
    cache.lease("dear", 0.0, 100.0, 2.0)
    _turn(cache, "new", [3] * 16)
    assert _hit(cache, [2] * 16) == 16
    assert _hit(cache, [1] * 16) == 0


def test_an_expired_lease_protects_nothing() -> None:
    cache = KVCache(8, SIZE, lease_budget=1.0)
    _turn(cache, "a", [1] * 16)
    cache.lease("a", 0.0, 1.0, 1.0)
    _turn(cache, "b", [2] * 16)
    cache.expire(2.0)
    assert cache.stats().leased_blocks == 0


def test_leases_that_were_replaced_are_not_kept() -> None:
    cache = KVCache(8, SIZE, lease_budget=1.0)
    _turn(cache, "a", [1] * 16)
    for now in range(1000):
        cache.lease("a", float(now), 1e9, 1.0)
    leases = cache._conversations._leases
    assert len(leases._by_value) < 100 and len(leases._by_expiry) < 100


def test_leases_over_the_budget_are_clipped_and_say_so() -> None:
    cache = KVCache(8, SIZE, lease_budget=0.5)
    _turn(cache, "a", [1] * 24)
    reply = cache.lease("a", 0.0, 1.0, 1.0)
    assert reply.status is LeaseStatus.CLIPPED
    assert reply.tokens == 16


def test_release_frees_at_once_what_only_that_conversation_used() -> None:
    cache = KVCache(16, SIZE, lease_budget=1.0)
    shared = [7] * 8
    _turn(cache, "a", shared + [1] * 8)
    _turn(cache, "b", shared + [2] * 8)
    free = cache.stats().free_blocks
    cache.release("a")
    assert cache.stats().free_blocks == free + 2
    assert _hit(cache, shared + [2] * 8) == 16


def test_a_newer_turn_supersedes_the_lease_of_the_branch_it_left() -> None:
    cache = KVCache(16, SIZE, lease_budget=1.0)
    _turn(cache, "a", [1] * 16)
    cache.lease("a", 0.0, 100.0, 1.0)
    _turn(cache, "a", [1] * 8 + [2] * 8)
    assert cache.stats().leased_blocks == 2


def test_the_unfinished_block_of_a_turn_is_gone_when_a_newer_turn_has_finished_it() -> None:
    cache = KVCache(18, SIZE, lease_budget=0.5, host_blocks=18)
    tokens, fork = list(range(2 * SIZE + 1)), list(range(SIZE + 1))
    _turn(cache, "other", fork)
    cache.lease("other", 0.0, 1e6, 1.0)
    for end in range(SIZE + 1, len(tokens) + 1):
        _turn(cache, "mine", tokens[:end])
        cache.lease("mine", 0.0, 1e6, 1.0)
        for block, _ in cache.take_copies().saves:
            cache.finish_save(block)
    # two full blocks, the last token's, and the unfinished one that the other conversation is at
    assert len(cache._index.known) == 4
    assert cache.stats().host_blocks == 4
    assert _hit(cache, fork) == len(fork)


def test_commands_about_an_unknown_conversation_answer_missing() -> None:
    cache = KVCache(4, SIZE)
    replies = (
        cache.lease("x", 0.0, 1.0, 1.0),
        cache.release("x"),
        cache.fork("x", "y"),
    )
    assert {r.status for r in replies} == {LeaseStatus.MISSING}


def test_tenants_do_not_share_blocks() -> None:
    cache = KVCache(8, SIZE)
    _turn(cache, "a", [1] * 16)
    other = Sequence("b", "b", [1] * 17, SamplingParams(), salt=b"tenant")
    assert cache.match(other).tokens == 0


def test_a_context_of_thousands_of_blocks_is_removed() -> None:
    cache = KVCache(2100, SIZE)
    long = list(range(2000 * SIZE))
    _turn(cache, "long", long)
    cache.release("long", evict=False)
    assert _hit(cache, long) == 2000 * SIZE
    cache.remove_all()
    assert _hit(cache, long) == 0
    assert cache.available == 2100
