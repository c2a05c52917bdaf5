"""Planning of engine steps, without a model."""

import pytest

from drawloom.engine.core.batch_scheduler import Batch
from drawloom.engine.core.step_plan import Sampled, StepPlan
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.sequence import FinishReason, SamplingParams, Sequence, Status
from drawloom.errors import ContextTooLong


def _batch(blocks: int = 64, **options: int) -> Batch:
    return Batch(KVCache(blocks, 16), max_tokens=32, **options)  # type: ignore[arg-type]


def _seq(name: str, length: int, priority: float = 0.0, max_tokens: int = 4) -> Sequence:
    offset = 1000 * (hash(name) % 997)
    tokens = list(range(offset, offset + length))
    return Sequence(name, name, tokens, SamplingParams(max_tokens=max_tokens), priority=priority)


def _finish(batch: Batch, plan: StepPlan) -> list[str]:
    sampled = {c.seq.id: Sampled(5, 0.0) for c in plan.chunks}
    return [o.seq.id for o in batch.complete(plan, sampled) if o.finish]


def test_a_step_never_computes_more_than_its_budget() -> None:
    batch = _batch()
    for index in range(5):
        batch.add(_seq(f"s{index}", 20))
    plan = batch.schedule()
    assert plan is not None
    assert [len(c.tokens) for c in plan.chunks] == [20, 12]
    assert [c.sample for c in plan.chunks] == [True, False]


def test_lower_priority_goes_first() -> None:
    batch = _batch()
    batch.add(_seq("late", 20, priority=2.0))
    batch.add(_seq("soon", 20, priority=1.0))
    plan = batch.schedule()
    assert plan is not None
    assert [c.seq.id for c in plan.chunks] == ["soon", "late"]


def test_decoding_goes_on_while_others_prefill() -> None:
    batch = _batch()
    batch.add(_seq("first", 8))
    plan = batch.schedule()
    assert plan is not None
    _finish(batch, plan)
    batch.add(_seq("second", 60))
    plan = batch.schedule()
    assert plan is not None
    assert [(c.seq.id, len(c.tokens)) for c in plan.chunks] == [("first", 1), ("second", 31)]


@pytest.mark.parametrize("prompts", [1, 3])
def test_every_decode_gets_its_token_before_any_prompt_whatever_the_priorities(
    prompts: int,
) -> None:
    batch = _batch(blocks=200)
    decoding = [f"d{n}" for n in range(3)]
    for name in decoding:
        batch.add(_seq(name, 4, priority=5.0, max_tokens=90))
    plan = batch.schedule()
    assert plan is not None
    _finish(batch, plan)
    for n in range(prompts):
        batch.add(_seq(f"p{n}", 900, priority=float(n)))
    for _ in range(30):
        plan = batch.schedule()
        assert plan is not None
        tokens = {chunk.seq.id: len(chunk.tokens) for chunk in plan.chunks}
        assert [tokens.get(name) for name in decoding] == [1, 1, 1]
        assert sum(tokens.values()) == 32, "the prompts have the rest"
        _finish(batch, plan)


def test_a_prompt_that_takes_the_room_of_a_decode_takes_its_place_in_the_step() -> None:
    cache = KVCache(10, 16, window=32)
    batch = Batch(cache, max_tokens=32)
    batch.add(_seq("low", 60, priority=5.0, max_tokens=40))
    steps = 0
    while True:
        plan = batch.schedule()
        assert plan is not None
        _finish(batch, plan)
        if plan.chunks[0].sample:
            break
    batch.add(_seq("high", 60, priority=0.0, max_tokens=2))
    while len(batch):
        plan = batch.schedule()
        assert plan is not None
        assert all(c.seq.status is Status.RUNNING for c in plan.chunks)
        _finish(batch, plan)
        steps += 1
        assert steps < 200


def test_a_prompt_that_can_never_fit_is_refused_at_once() -> None:
    batch = _batch(blocks=2)
    with pytest.raises(ContextTooLong, match="32"):
        batch.add(_seq("big", 40))
    with pytest.raises(ContextTooLong, match="empty"):
        batch.add(Sequence("none", "none", [], SamplingParams()))
    assert len(batch) == 0


def test_cancel_frees_the_blocks_at_once() -> None:
    batch = _batch()
    batch.add(_seq("a", 100))
    assert batch.schedule() is not None
    assert batch.cache.stats().held_blocks > 0
    batch.cancel("a")
    assert batch.cache.stats().held_blocks == 0
    assert batch.cancel("a") is None


def test_a_step_that_fails_ends_only_the_sequence_that_fails_alone() -> None:
    batch = _batch()
    for name in ("good", "bad", "fine"):
        batch.add(_seq(name, 4, max_tokens=1))
    ended: dict[str, FinishReason] = {}
    for _ in range(20):
        plan = batch.schedule()
        if plan is None:
            break
        if any(c.seq.id == "bad" for c in plan.chunks):
            outputs = batch.fail_step(plan, RuntimeError("broken"))
        else:
            outputs = batch.complete(plan, {c.seq.id: Sampled(5, 0.0) for c in plan.chunks})
        ended |= {o.seq.id: o.finish for o in outputs if o.finish}
    assert ended == {"good": "length", "bad": "error", "fine": "length"}
    batch.cache.check([])


def test_ten_times_more_programs_than_memory_all_finish() -> None:
    batch = _batch(blocks=12, max_sequences=64)
    for index in range(100):
        batch.add(_seq(f"p{index}", 40, max_tokens=30))
    done: list[str] = []
    for _ in range(100_000):
        plan = batch.schedule()
        if plan is None:
            break
        done += _finish(batch, plan)
    assert len(done) == 100
