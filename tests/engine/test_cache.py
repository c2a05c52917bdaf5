"""Block accounting, leases and chains hold under any order of events."""

import random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from drawloom.engine.batch import Batch, Sampled
from drawloom.engine.cache import KVCache
from drawloom.engine.sequence import SamplingParams, Sequence, Status
from drawloom.leases import LeaseStatus

SIZE = 4


class CacheMachine(RuleBasedStateMachine):
    """A batch over a small cache; lineages that return, fork, lease and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(24, SIZE, lease_budget=0.5)
        self.batch = Batch(self.cache, max_tokens=11, max_sequences=4, contiguous=True)
        self.chats: dict[str, list[int]] = {}
        self.now = 0.0
        self.made = 0

    @rule(new=st.booleans(), more=st.integers(1, 20), words=st.integers(1, 3), data=st.data())
    def ask(self, new: bool, more: int, words: int, data: Any) -> None:
        if new or not self.chats:
            self.made += 1
            self.chats[f"chat-{self.made}"] = []
        name = data.draw(st.sampled_from(sorted(self.chats)))
        if any(s.lineage == name for s in self.batch.sequences):
            return
        rng = random.Random(more * 7 + words)
        tokens = self.chats[name] + [rng.randrange(words) for _ in range(more)]
        if len(tokens) > 60:
            tokens = tokens[:30]
        self.made += 1
        params = SamplingParams(max_tokens=6)
        self.batch.add(Sequence(f"seq-{self.made}", name, tokens, params))

    @rule(token=st.integers(0, 2))
    def step(self, token: int) -> None:
        plan = self.batch.schedule()
        if plan is None:
            assert not len(self.batch)
            return
        assert sum(len(c.tokens) for c in plan.chunks) <= 11
        for output in self.batch.complete(plan, {c.seq: Sampled(token, 0.0) for c in plan.chunks}):
            if output.finish:
                self.chats[output.seq.lineage] = output.seq.tokens

    @precondition(lambda self: len(self.batch) > 0)
    @rule()
    def step_that_fails(self) -> None:
        plan = self.batch.schedule()
        if plan is not None:
            self.batch.failed(plan, RuntimeError("no"))

    @rule(data=st.data(), ttl=st.floats(0, 5), value=st.floats(0, 3))
    def lease(self, data: Any, ttl: float, value: float) -> None:
        if self.chats:
            name = data.draw(st.sampled_from(sorted(self.chats)))
            reply = self.cache.lease(name, self.now, ttl, value)
            assert reply.tokens <= len(self.chats[name]) + 20

    @rule(data=st.data())
    def release(self, data: Any) -> None:
        if self.chats:
            name = data.draw(st.sampled_from(sorted(self.chats)))
            self.cache.release(name)
            del self.chats[name]

    @rule(data=st.data())
    def fork(self, data: Any) -> None:
        if self.chats:
            name = data.draw(st.sampled_from(sorted(self.chats)))
            self.made += 1
            self.cache.fork(name, f"chat-{self.made}")
            self.chats[f"chat-{self.made}"] = list(self.chats[name])

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        if len(self.batch):
            self.batch.cancel(data.draw(st.sampled_from([s.id for s in self.batch.sequences])))

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.cache.expire(self.now)

    @invariant()
    def accounting_is_exact(self) -> None:
        self.cache.check(self.batch.sequences)

    def teardown(self) -> None:
        for _ in range(10_000):
            plan = self.batch.schedule()
            if plan is None:
                break
            self.batch.complete(plan, {c.seq: Sampled(0, 0.0) for c in plan.chunks})
        assert not len(self.batch), "a sequence never finished"
        self.cache.forget_all()
        self.cache.check([])
        assert self.cache.pool.free == self.cache.pool.count


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCache = CacheMachine.TestCase


def _turn(cache: KVCache, lineage: str, tokens: list[int]) -> Sequence:
    """Compute a prompt as a batch would, and end."""
    seq = Sequence(f"{lineage}-{len(tokens)}", lineage, tokens, SamplingParams())
    copies = cache.start(seq, cache.blocks_for(len(tokens)), False)
    assert copies is not None, "no room"
    for source, _, _ in copies:
        cache.copied(source)
    cache.computed(seq, len(tokens))
    cache.finish(seq)
    seq.status = Status.FINISHED
    return seq


def _hit(cache: KVCache, tokens: list[int]) -> int:
    return cache.match(Sequence("probe", "probe", [*tokens, 0], SamplingParams()))[2]


def test_leased_blocks_are_evicted_last() -> None:
    cache = KVCache(8, SIZE, lease_budget=1.0)
    kept, lost = [1] * 15, [2] * 15
    _turn(cache, "kept", kept)
    _turn(cache, "lost", lost)
    assert cache.lease("kept", 0.0, 10.0, 1.0).status is LeaseStatus.ACCEPTED
    _turn(cache, "other", [3] * 16)
    assert _hit(cache, kept) == 15
    assert _hit(cache, lost) == 0


def test_a_running_sequence_may_reclaim_every_lease() -> None:
    cache = KVCache(8, SIZE, lease_budget=1.0)
    _turn(cache, "a", [1] * 30)
    cache.lease("a", 0.0, 1e9, 1e9)
    _turn(cache, "b", [2] * 31)
    assert cache.counters.lease_breaks == 1
    assert cache.leased_blocks == 0


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
    assert cache.leased_blocks == 0


def test_leases_over_the_budget_are_clipped_and_say_so() -> None:
    cache = KVCache(8, SIZE, lease_budget=0.5)
    _turn(cache, "a", [1] * 24)
    reply = cache.lease("a", 0.0, 1.0, 1.0)
    assert reply.status is LeaseStatus.CLIPPED
    assert reply.tokens == 16


def test_release_frees_at_once_what_only_that_lineage_used() -> None:
    cache = KVCache(16, SIZE, lease_budget=1.0)
    shared = [7] * 8
    _turn(cache, "a", shared + [1] * 8)
    _turn(cache, "b", shared + [2] * 8)
    free = cache.pool.free
    cache.release("a")
    assert cache.pool.free == free + 2
    assert _hit(cache, shared + [2] * 8) == 16


def test_a_newer_turn_supersedes_the_lease_of_the_branch_it_left() -> None:
    cache = KVCache(16, SIZE, lease_budget=1.0)
    _turn(cache, "a", [1] * 16)
    cache.lease("a", 0.0, 100.0, 1.0)
    _turn(cache, "a", [1] * 8 + [2] * 8)
    assert cache.leased_blocks == 2


def test_verbs_on_an_unknown_lineage_answer_missing() -> None:
    cache = KVCache(4, SIZE)
    replies = (cache.lease("x", 0.0, 1.0, 1.0), cache.release("x"), cache.fork("x", "y"))
    assert {r.status for r in replies} == {LeaseStatus.MISSING}


def test_tenants_do_not_share_blocks() -> None:
    cache = KVCache(8, SIZE)
    _turn(cache, "a", [1] * 16)
    other = Sequence("b", "b", [1] * 17, SamplingParams(), salt=b"tenant")
    assert cache.match(other)[2] == 0
