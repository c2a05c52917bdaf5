"""Records of conversations are bounded, and no cached block is lost by it."""

import sys
import tracemalloc
from array import array
from collections.abc import Iterable
from typing import Any

import pytest

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.kvcache.keys import chain, root
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.kvcache.offload import Offload
from drawloom.engine.kvcache.prefix_index import PrefixIndex
from drawloom.engine.runners.mock_runner import NumberTokenizer, QuickRunner
from drawloom.engine.sequence import SamplingParams, Sequence
from drawloom.engine.stats import CacheCounters
from drawloom.leases import LeaseStatus
from tests.fakes.mock_engine import mock_info

SIZE = 16


def _core(blocks: int = 64, host: int = 0) -> EngineCore:
    cache = KVCache(blocks, SIZE, host_blocks=host)
    info = mock_info(blocks, SIZE, host)
    return EngineCore(info, cache, QuickRunner(lambda seq: 7, SIZE), NumberTokenizer())


def _serve(core: EngineCore, conversation: str, tokens: Iterable[int]) -> None:
    params = SamplingParams(max_tokens=1)
    core.submit(GenerateRequest(conversation, conversation, tuple(tokens), params))
    while core.busy:
        core.step()


def _prompts(kind: str, count: int) -> Any:
    trunk = range(100)
    for n in range(count):
        if kind == "different":
            yield range(1000 * n, 1000 * n + 120)
        elif kind == "one trunk":
            yield [*trunk, *range(1000 * n, 1000 * n + 20)]
        else:
            yield trunk


@pytest.mark.parametrize("host", [0, 100])
@pytest.mark.parametrize("kind", ["different", "one trunk", "the same"])
def test_one_off_requests_leave_a_bounded_memory(kind: str, host: int) -> None:
    core = _core(host=host)
    sizes = []
    tracemalloc.start()
    try:
        for n, tokens in enumerate(_prompts(kind, 2400)):
            _serve(core, f"chat-{n}", tokens)
            if n in (1199, 2399):
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    core.cache.check([])
    assert core.cache.stats().conversations <= 2 * (64 + host) + 64
    assert max(len(entry.users) for entry in core.cache._index.known.values()) <= 2 * 164 + 64
    assert sizes[1] < 1.3 * sizes[0] + 200_000, "as many again take as much again"


def test_a_conversation_without_a_record_still_hits_its_blocks() -> None:
    core, twin = _core(), _core()
    twin.cache._conversations._prune_above = sys.maxsize  # deletes no record
    for engine in (core, twin):
        for n in range(400):
            _serve(engine, f"chat-{n}", range(1000 * (n % 9), 1000 * (n % 9) + 30 + n))
    assert core.cache.stats().conversations < twin.cache.stats().conversations
    mine, theirs = core.stats(), twin.stats()
    assert mine.batch.computed_tokens == theirs.batch.computed_tokens
    assert mine.cache.hit_tokens == theirs.cache.hit_tokens
    assert mine.cache.evictions == theirs.cache.evictions


def test_records_with_a_lease_or_a_running_sequence_are_kept() -> None:
    core = _core()
    _serve(core, "leased", range(40))
    core.handle(do.Lease("leased", 1e6, 1e6))
    params = SamplingParams(max_tokens=500)
    core.submit(GenerateRequest("r", "runs", tuple(range(100)), params))
    core.step()
    core.submit(GenerateRequest("s", "runs-again", tuple(range(100)), params))
    for _ in range(3):
        core.step()
    core.cache._conversations._prune()
    assert core.stats().cache.leased_blocks == 3
    assert core.handle(do.Release("leased")).status is LeaseStatus.ACCEPTED
    core.cancel("r")
    core.cancel("s")
    assert core.handle(do.Release("runs")).tokens > 0


def test_tokens_of_a_conversation_are_compact() -> None:
    core = _core()
    _serve(core, "chat", range(500))
    record = core.cache._conversations._records["chat"]
    assert isinstance(record.tokens, array)
    assert sys.getsizeof(record.tokens) < 5 * 500


def test_blocks_of_a_rewritten_history_are_evicted_first() -> None:
    core, trunk = _core(blocks=32), range(100)
    _serve(core, "other", range(5000, 5128))
    for turn in range(40):
        _serve(core, "mine", [*trunk, *range(1000 * turn, 1000 * turn + 120)])
        core.handle(do.Lease("mine", 1e9, 1e9))
        core.cache._index.check({}, {b""} | set(core.cache._index.children))
    assert core.cache.counters.hit_tokens >= 39 * 96  # the trunk is found each time
    before = core.cache.counters.hit_tokens
    _serve(core, "other", range(5000, 5128))
    assert core.cache.counters.hit_tokens - before >= 127  # the longest unused, and still there


def test_a_conversation_can_return_to_an_abandoned_branch_while_it_is_cached() -> None:
    core, one, other = _core(), range(200), [*range(100), *range(900, 1000)]
    _serve(core, "mine", one)
    _serve(core, "mine", other)
    before = core.cache.counters.hit_tokens
    _serve(core, "mine", one)
    assert core.cache.counters.hit_tokens - before >= 190


def test_blocks_shared_with_a_fork_are_not_evicted_first() -> None:
    core, trunk = _core(blocks=32), range(160)
    _serve(core, "mine", trunk)
    core.handle(do.Fork("mine", "branch"))
    for turn in range(20):
        _serve(core, "mine", range(1000 * turn, 1000 * turn + 160))
    before = core.cache.counters.hit_tokens
    _serve(core, "branch", [*trunk, 7])
    assert core.cache.counters.hit_tokens - before >= 160


def test_a_failed_private_load_keeps_the_block_on_the_device() -> None:
    index, tokens = PrefixIndex(8, 4), tuple(range(SIZE))
    offload = Offload(index, CacheCounters())
    block = index.pool.allocate()
    entry = index.publish(root(b""), chain(root(b""), tokens), tokens, block)
    assert offload.save(entry)
    index.unpin(offload.finish_save(block))
    offload.evict(entry)
    both = [Sequence(name, name, [*tokens, 1], SamplingParams()) for name in "ab"]
    places = [index.pool.allocate(), index.pool.allocate()]
    offload.load(entry, places[0], both[0])
    offload.load(entry, places[1], both[1], private=True)
    offload.finish_load(places[0])
    assert offload.cancel_load(places[1]) == [both[1]]
    assert not entry.dead and entry.block == places[0]
