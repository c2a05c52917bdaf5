"""The engine without tokens: what a prompt takes does not depend on how often one looks."""

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drawloom.runtime.sim.engine import SimEngine, Work, sequence
from drawloom.runtime.sim.presets import machine

H200 = replace(machine("h200-8b"), kv_tokens=400_000, host_tokens=0)


def _work(name: str, prompt: int, output: int, engine: SimEngine, first: int) -> Work:
    unit = engine.machine.unit
    numbers = list(range(first, first + (prompt + output) // unit + 2))
    return Work(name, sequence(name, name, numbers), prompt, output, 0.0, engine.now)


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


@settings(max_examples=60, deadline=None)
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
    for prompt in (100, 8_192, 80_000):
        ((first, _),) = _run([(prompt, 1)], []).values()
        alone = cost.prefill * prompt + cost.prefill_cached * prompt * prompt / 2
        assert first == pytest.approx(alone + max(1, prompt / H200.batch_tokens) * cost.step)
