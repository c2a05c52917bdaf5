"""What it costs to look at programs before the largest of them are given up."""

import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.graph.probe_cost import ProbeCost
from drawloom.graph.program_stats import ProgramSummary
from tests.lanes import examples


def _seen(*programs: tuple[int, float, float]) -> ProbeCost:
    look = ProbeCost()
    for program in programs:
        look.observe(*program)
    return look


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 9.0), st.floats(0.1, 90.0)), min_size=8, max_size=10))
def test_it_is_the_best_choice_of_those_that_are_gone_on_with(
    programs: list[tuple[float, float]],
) -> None:
    look = _seen(*((2, had, had + left) for had, left in programs))
    spent = sum(had for had, _ in programs)
    costs = [
        (spent + sum(left for (_, left), on in zip(programs, chosen, strict=True) if on))
        / sum(chosen)
        for chosen in product((False, True), repeat=len(programs))
        if any(chosen)
    ]
    assert look.cost(1.0) == pytest.approx(min(costs))


def test_a_look_is_worth_much_where_programs_differ_and_nothing_where_they_do_not() -> None:
    differ = _seen(*[(1, 1.0, 5.0), (1, 1.0, 95.0)] * 8)
    assert differ.cost(1.0) == pytest.approx(6.0)  # two are looked at for each small one
    alike = _seen(*[(1, 1.0, 50.0)] * 16)
    assert alike.cost(1.0) == pytest.approx(50.0)


def test_sizes_are_shares_of_what_is_usual() -> None:
    look = _seen(*[(1, 1.0, 0.5), (1, 1.0, 1.5)] * 8)
    assert look.cost(100.0) == pytest.approx(51.0)
    assert look.cost(10.0) == pytest.approx(6.0)


def test_who_never_shows_it_has_to_be_run_to_the_end() -> None:
    look = _seen(*[(1, 1.0, 5.0)] * 8, *[(0, 0.0, 100.0)] * 8)
    assert look.cost(1.0) == pytest.approx((8 * 5.0 + 8 * 100.0) / 16)


def test_it_is_known_after_how_many_calls_and_only_from_enough_programs() -> None:
    few = _seen(*[(3, 1.0, 5.0)] * 3, *[(0, 0.0, 5.0)] * 50)
    assert (few.calls, few.cost(1.0)) == (0, None)
    few.observe(9, 1.0, 5.0)
    assert few.calls == 3
    assert few.cost(1.0) is not None


def test_what_programs_showed_outlives_a_restart() -> None:
    graph = ExecutionGraph("a")
    for number in range(20):
        summary = ProgramSummary(10, service=10.0 + number, steps=4, size_known_at=(2, 1.0))
        graph.finished(replace(summary, declaration_growth=0.5 + number % 2))
    again = ExecutionGraph.restore("a", json.loads(json.dumps(graph.saved())))
    for known in (graph, again):
        assert (known.stats.size_probe.calls, known.stats.declared_probe.calls) == (2, 2)
        assert known.stats.size_probe.cost(1.0) == pytest.approx((20 + sum(range(9, 15))) / 6)
        assert known.stats.declared_probe.cost(8.0) == pytest.approx(5.0)
    older = graph.saved()
    del older["look"], older["told"]
    assert ExecutionGraph.restore("a", older).stats.size_probe.cost(1.0) is None
