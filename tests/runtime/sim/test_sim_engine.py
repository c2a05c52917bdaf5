"""The engine without tokens: what a prompt takes does not depend on how often one looks, and who
gives way loses nothing but time."""

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drawloom.runtime.sim.presets import Machine, machine
from drawloom.runtime.sim.sim_calls import BLOCK, Work, sequence
from drawloom.runtime.sim.sim_engine import SimEngine
from tests.lanes import examples

H200 = replace(machine("h200-8b"), kv_tokens=400_000, host_tokens=0)
TIGHT = replace(H200, unit=1, kv_tokens=20 * BLOCK)


def _work(
    name: str, prompt: int, output: int, engine: SimEngine, first: int, priority: float = 0.0
) -> Work:
    unit = engine.machine.unit
    whole = -(-prompt // unit)
    numbers = list(range(first, first + whole))
    answer = list(range(first + whole, first + whole - (-output // unit)))
    seq = sequence(name, name, numbers)
    return Work(
        name, seq, whole * unit, output=output, priority=priority, ready=engine.now, answer=answer
    )


def _run(prompts: list[tuple[int, int]], looks: list[float]) -> dict[str, tuple[float, float]]:
    engine = SimEngine(H200, False, False)
    for at, (prompt, output) in enumerate(prompts):
        engine.submit(_work(f"w{at}", prompt, output, engine, 1 + 10_000 * at))
    found: dict[str, tuple[float, float]] = {}
    looks = sorted(looks, reverse=True)
    engine.advance(0.0)
    while (soon := engine.next_event()) is not None:
        while looks and looks[-1] <= engine.now:
            looks.pop()
        engine.advance(looks.pop() if looks and looks[-1] < soon else soon)
        for work in engine.finished:
            found[work.step] = (work.first, engine.now)
        engine.finished.clear()
    return found


@settings(max_examples=examples(60), deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.integers(100, 90_000), st.integers(1, 400)), min_size=1, max_size=4
    ),
    looks=st.lists(st.floats(0.0, 20.0), max_size=40),
)
@example(prompts=[(100, 5), (30_364, 400), (33_688, 6)], looks=[2.0])  # ends inside a prompt
def test_looking_at_it_changes_nothing(prompts: list[tuple[int, int]], looks: list[float]) -> None:
    often, once = _run(prompts, looks), _run(prompts, [])
    assert often.keys() == once.keys()
    for name, times in once.items():
        # a decoding step costs what its context was at the last look, up to 4 x 400 tokens less
        assert often[name] == pytest.approx(times, rel=5e-3, abs=1e-3)


def test_a_prompt_alone_takes_what_the_cost_model_says_and_a_step_at_least() -> None:
    cost = H200.cost
    for prompt in (128, 8_192, 80_000):
        ((first, _),) = _run([(prompt, 1)], []).values()
        alone = cost.prefill * prompt + cost.prefill_cached * prompt * prompt / 2
        assert first == pytest.approx(alone + max(1, prompt / H200.batch_tokens) * cost.step)


# --- blocks run out ---------------------------------------------------------------------------


def _finish(engine: SimEngine, works: list[Work]) -> list[Work]:
    """Run to the end; the cache is checked wherever anything changes."""
    ended: list[Work] = []
    engine.advance(engine.now)
    for _ in range(20_000):
        soon = engine.next_event()
        if soon is None:
            break
        engine.advance(soon)
        engine.transfer()
        held = [work.seq for work in works if work.seq.blocks]
        engine.cache.check(held)
        assert engine.cache.stats().held_blocks <= engine.machine.kv_tokens // BLOCK
        ended += engine.finished
        engine.finished.clear()
    return ended


def _load(engine: SimEngine, calls: list[tuple[int, int, int]]) -> list[Work]:
    works = [
        _work(f"w{at}", prompt, output, engine, 1 + 10_000 * at, priority)
        for at, (prompt, output, priority) in enumerate(calls)
    ]
    for work in works:
        engine.submit(work)
    return works


CALLS = st.lists(
    st.tuples(st.integers(1, 150), st.integers(1, 150), st.integers(0, 2)), min_size=1, max_size=9
)


@settings(max_examples=examples(100), deadline=None)
@given(calls=CALLS, host=st.booleans())
@example(calls=[(150, 150, 0), (100, 150, 0), (60, 100, 0)], host=True)
@example(calls=[(16, 150, 1), (16, 150, 1), (150, 150, 0)], host=False)
@example(calls=[(10, 55, 0), (121, 56, 0), (12, 53, 0), (13, 36, 0)], host=False)
@example(calls=[(1, 112, 0), (1, 109, 0), (18, 95, 0), (1, 64, 0)], host=False)
def test_all_end_and_every_token_is_computed_once_and_once_more_where_it_was_lost(
    calls: list[tuple[int, int, int]], host: bool
) -> None:
    engine = SimEngine(replace(TIGHT, host_tokens=40 * BLOCK), host, host)
    works = _load(engine, calls)
    ended = _finish(engine, works)
    assert sorted(work.step for work in ended) == sorted(work.step for work in works)
    counters = engine.counters
    assert counters.prompt == sum(prompt for prompt, _, _ in calls)
    assert counters.output == sum(output for _, output, _ in calls)
    first = sum(work.prompt - work.cached for work in works)
    assert counters.computed == first + counters.repeated
    assert counters.preempted == sum(work.preemptions for work in works) == len(engine.preempted)
    if not counters.preempted:
        assert not counters.repeated
    assert engine.cache.stats().held_blocks == 0


@settings(max_examples=40, deadline=None)
@given(calls=CALLS)
def test_with_room_for_whole_outputs_from_the_start_nobody_gives_way(
    calls: list[tuple[int, int, int]],
) -> None:
    engine = SimEngine(replace(TIGHT, reserve=True), False, False)
    works = _load(engine, calls)
    assert len(_finish(engine, works)) == len(works)
    assert (engine.counters.preempted, engine.counters.repeated) == (0, 0)


def _two(machine: Machine, first: int, second: int) -> tuple[SimEngine, list[Work]]:
    engine = SimEngine(machine, False, False)
    works = _load(engine, [(128, 120, first), (128, 120, second)])
    _finish(engine, works)
    return engine, works


def test_who_gives_way_is_last_by_priority_then_by_arrival() -> None:
    _, works = _two(TIGHT, 0, 0)
    assert [work.preemptions for work in works] == [0, 1]
    _, works = _two(TIGHT, 1, 0)
    assert [work.preemptions for work in works] == [1, 0]


def test_who_gave_way_says_only_what_is_left_and_was_first_heard_before() -> None:
    engine, works = _two(TIGHT, 0, 0)
    alone, _ = _two(replace(TIGHT, kv_tokens=100 * BLOCK), 0, 0)
    assert works[1].first < works[0].ends
    assert engine.counters.output == alone.counters.output
    # both together fill the device: what the first took of the second's is computed again
    assert 0 < works[1].repeated <= 128 + 120
    assert engine.now > alone.now


def test_a_call_starts_when_its_prompt_has_room_whatever_it_will_say() -> None:
    engine = SimEngine(TIGHT, False, False)
    works = _load(engine, [(150, 150, 0), (100, 150, 0)])
    engine.advance(0.0)
    assert (engine.running, engine.waiting) == (2, 0)
    assert len(_finish(engine, works)) == 2
