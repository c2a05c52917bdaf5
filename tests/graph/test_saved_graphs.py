"""What was learned is the same after a restart, and forecasts are held against what happened."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawloom.graph.calibration import Calibration
from drawloom.graph.execution_graph import END, ExecutionGraph
from drawloom.graph.forecast import Forecast
from drawloom.graph.program_stats import ProgramSummary
from tests.lanes import examples

STATES = ("plan/", "work/shell", "work/read", END)


@settings(max_examples=examples(60), deadline=None)
@given(
    moves=st.lists(st.tuples(st.sampled_from(STATES[:-1]), st.sampled_from(STATES)), max_size=24),
    seconds=st.lists(st.floats(0, 1e4), max_size=20),
    ends=st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1e5)), max_size=10),
    forks=st.integers(0, 3),
)
def test_a_graph_goes_on_where_it_was(
    moves: list[tuple[str, str]],
    seconds: list[float],
    ends: list[tuple[int, float]],
    forks: int,
) -> None:
    graph = ExecutionGraph("a")
    for source, target in moves:
        graph.transitions.observe(source, target)
    for _ in range(forks):
        graph.transitions.observe(graph.transitions.forked("plan/"), "work/shell")
    for value in seconds:
        graph.durations.observe("shell", value)
        graph.calibrate(graph.forecast("plan/", "shell"), value, "work/shell")
    for peak, service in ends:
        trail = [(service / 2, 1.0), (service, 0.0)]
        graph.finished(
            ProgramSummary(peak, service, 2 * service, 3 * service, steps=3, trail=trail)
        )
        graph.declared.observe(1.0, 3)
    again = ExecutionGraph.restore("a", json.loads(json.dumps(graph.saved())))
    for state in STATES:
        assert again.transitions.probabilities(state) == pytest.approx(
            graph.transitions.probabilities(state)
        )
        assert again.transitions.calls_left(state) == pytest.approx(
            graph.transitions.calls_left(state)
        )
        mine, theirs = again.forecast(state, "shell"), graph.forecast(state, "shell")
        assert (mine.seconds_p50, mine.seconds_p95) == (theirs.seconds_p50, theirs.seconds_p95)
    assert again.stats.mean_peak_tokens == graph.stats.mean_peak_tokens
    assert again.stats.mean_turnaround == graph.stats.mean_turnaround
    assert again.declared.expected(1.0) == graph.declared.expected(1.0)
    assert (again.stats.mean_service, again.stats.mean_jct) == (
        graph.stats.mean_service,
        graph.stats.mean_jct,
    )
    assert again.calibrations == graph.calibrations
    assert (again.stats.states_informative, again.stats.step_seconds) == (
        graph.stats.states_informative,
        graph.stats.step_seconds,
    )
    assert again.saved() == graph.saved()


def test_a_graph_that_an_older_release_saved_is_read() -> None:
    graph = ExecutionGraph("a")
    graph.finished(ProgramSummary(10, 1.0, 2.0, steps=3))
    saved = graph.saved() | {"alone": [0.5], "calls": [3]}  # which are no longer used
    del saved["declared"], saved["sizes"], saved["usual_jct"]
    again = ExecutionGraph.restore("a", saved)
    assert (
        again.stats.mean_turnaround,
        again.stats.mean_peak_tokens,
        again.stats.step_seconds,
    ) == (2.0, 10, 1 / 3)
    assert again.declared.expected(7.0) == 7.0
    assert again.stats.mean_jct is None


def test_what_is_no_graph_is_refused() -> None:
    for bad in ({}, {"edges": [["a"]]}, {**ExecutionGraph("a").saved(), "contexts": ["x"]}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            ExecutionGraph.restore("a", bad)


def test_forecasts_are_counted_against_what_happened() -> None:
    one = Calibration()
    forecast = Forecast("shell", {"x": 0.7, "y": 0.3}, 2.0, 9.0)
    for seconds, state in ((1.0, "x"), (3.0, "y"), (10.0, "z")):
        one.observe(forecast, seconds, state)
    one.observe(Forecast("shell"), 1.0, "x")  # nothing was foretold
    assert one.chance == pytest.approx(1.0)
    assert one == Calibration(3, 1, 2, 3, 1, one.chance)


def test_states_are_trusted_where_they_would_have_known_better() -> None:
    informed, misled = ExecutionGraph("a"), ExecutionGraph("b")
    for turn in range(40):
        service = 1.0 if turn % 2 else 99.0
        right, wrong = (0.5, service - 0.5), (0.5, 100 - service)
        for graph, guess in ((informed, right), (misled, wrong)):
            trail = [guess, (service, 0.0)]
            graph.finished(ProgramSummary(1, service, 1.0, steps=2, trail=trail))
    assert informed.stats.states_informative
    assert not misled.stats.states_informative


def test_a_state_that_forks_has_its_branches_calls_as_well() -> None:
    graph = ExecutionGraph("a")
    for _ in range(50):
        graph.transitions.observe("start", "plan/")
        for _ in range(3):
            branch = graph.transitions.forked("plan/")
            for source, target in ((branch, "work/"), ("work/", "work/t"), ("work/t", END)):
                graph.transitions.observe(source, target)
        graph.transitions.observe("plan/", "join/")
        graph.transitions.observe("join/", END)
    assert graph.transitions.calls_left("plan/") == pytest.approx(1 + 3 * 2 + 1, rel=0.02)
    assert graph.transitions.calls_left("work/") == pytest.approx(2)
