"""What programs come to, by the calls that they make."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.graph.execution import END, START, ExecutionGraph
from drawloom.graph.trend import Trend


@given(
    st.floats(0, 1e5), st.floats(0.1, 1e4), st.sets(st.integers(1, 200), min_size=8, max_size=40)
)
def test_programs_on_a_line_are_foretold(base: float, each: float, calls: set[int]) -> None:
    counts = sorted(calls)
    trend = Trend(counts, [base + each * n for n in counts])
    assert trend.at(100) == pytest.approx(base + 100 * each, rel=1e-6, abs=1e-3)
    assert trend.spread == pytest.approx(0.0, abs=1e-3)


def test_how_far_others_were_from_it_is_known() -> None:
    trend = Trend([1, 2, 3, 4] * 2, [9.0, 19.0, 29.0, 39.0, 11.0, 21.0, 31.0, 41.0])
    assert trend.at(5) == pytest.approx(50.0)
    assert trend.spread == pytest.approx(1.0)
    assert trend.at(-5) == 0.0


def test_a_line_that_falls_says_nothing() -> None:
    assert Trend(range(10), [float(10 - n) for n in range(10)]).at(3) is None


@pytest.mark.parametrize("calls", [[], [1, 2, 3, 4, 5, 6, 7], [3] * 50])
def test_too_few_programs_or_all_alike_say_nothing(calls: list[int]) -> None:
    assert Trend(calls, [float(n) for n in calls]).at(3) is None


def test_what_an_agent_s_calls_say_outlives_a_restart() -> None:
    graph = ExecutionGraph("a")
    for calls in range(1, 21):
        graph.finished(1000 * calls, service=2.0 * calls, steps=calls)
    again = ExecutionGraph.restore("a", json.loads(json.dumps(graph.saved())))
    for known in (graph, again):
        assert known.peaks.at(40) == pytest.approx(40_000)
        assert known.totals.at(40) == pytest.approx(80.0)
    older = graph.saved()
    del older["sizes"]
    assert ExecutionGraph.restore("a", older).peaks.at(40) is None


def test_branches_that_are_there_are_not_expected_as_well() -> None:
    """A trunk that forks into two branches of three calls each, and goes on with one call."""
    graph = ExecutionGraph("a")
    for _ in range(50):
        graph.observe(START, "trunk")
        for _ in range(2):
            branch = graph.forked("trunk")
            for source, target in ((branch, "1"), ("1", "2"), ("2", "3"), ("3", END)):
                graph.observe(source, target)
        graph.observe("trunk", "join")
        graph.observe("join", END)
        graph.finished(10, service=8.0, steps=8)
    trunk, branches = ("trunk", True, False), {("1", False, False): 2}
    forked = {("trunk", True, True): 1}
    assert graph.service_left({trunk: 1}) == pytest.approx(7.0, rel=0.05)
    assert graph.service_left(forked | branches) == pytest.approx(7.0, rel=0.05)
    assert graph.service_left(forked) == pytest.approx(1.0, rel=0.05)
