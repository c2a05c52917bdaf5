"""What calls cost is a line through those that ended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.learned_cost import LearnedCost


def test_prompts_that_are_alike_cost_what_they_take_on_average() -> None:
    learned = LearnedCost()
    for seconds in (1.0, 3.0) * 50:
        learned.learn(1000, seconds, 0, 0.0)
    assert learned.model.prefill == pytest.approx(0.002, rel=0.05)


def test_what_falls_with_the_prompt_is_chance() -> None:
    learned = LearnedCost()
    for _ in range(50):
        learned.learn(1000, 1.0, 0, 0.0)
        learned.learn(10, 5.0, 0, 0.0)
    assert learned.model.prefill == pytest.approx(6.0 / 1010, rel=0.05)


def test_nothing_is_learned_of_calls_that_computed_and_said_nothing() -> None:
    learned = LearnedCost()
    learned.learn(0, 1.0, 0, 1.0)
    learned.learn(10, 0.0, 10, 0.0)
    assert learned.model == CostModel()


@given(
    st.floats(1e-6, 1e-2),
    st.floats(0, 1.0),
    st.lists(st.integers(1, 10**5), min_size=2, max_size=50),
)
def test_a_line_is_found_where_prompts_differ(each: float, base: float, prompts: list[int]) -> None:
    learned = LearnedCost()
    for prompt in prompts:
        learned.learn(prompt, base + each * prompt, 0, 0.0)
    mean = learned.model.prefill
    assert each * (1 - 1e-6) <= mean <= (base + each) * (1 + 1e-6)
    if max(prompts) > 10 * min(prompts) and len(set(prompts)) == len(prompts) == 2:
        assert mean == pytest.approx(each, rel=1e-3)
