"""Learning what programs do."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.graph.execution_graph import END, START, ExecutionGraph, Position
from drawloom.graph.program_stats import ProgramSummary
from drawloom.graph.transition_model import OTHER, STATES, SUCCESSORS


def test_probabilities_are_shares_of_what_was_seen() -> None:
    graph = ExecutionGraph("a")
    for target in ("x", "x", "x", END):
        graph.transitions.observe("llm", target)
    following = graph.transitions.probabilities("llm")
    assert sum(following.values()) == pytest.approx(1.0)
    assert following["x"] == pytest.approx(0.75, abs=0.01)


def test_a_prior_counts_until_observations_outweigh_it() -> None:
    graph = ExecutionGraph("a")
    graph.transitions.declare("llm", "x", 0.9)
    graph.transitions.declare("llm", END, 0.1)
    assert graph.transitions.probabilities("llm")["x"] == pytest.approx(0.9)
    for _ in range(100):
        graph.transitions.observe("llm", END)
    assert graph.transitions.probabilities("llm")["x"] < 0.1


def test_steps_left_is_the_expectation_of_the_chain() -> None:
    graph = ExecutionGraph("a")
    graph.transitions.declare(START, "llm", 1.0)
    graph.transitions.declare("llm", "llm", 0.75)
    graph.transitions.declare("llm", END, 0.25)
    assert graph.transitions.calls_left("llm") == pytest.approx(4.0)
    assert graph.transitions.calls_left(START) == pytest.approx(4.0)
    assert graph.transitions.calls_left("nowhere") is None


def test_a_loop_without_an_end_is_not_a_crash() -> None:
    graph = ExecutionGraph("a")
    graph.transitions.observe("llm", "llm")
    assert graph.transitions.calls_left("llm") in (None, 1000.0)


def test_the_live_graph_is_a_networkx_digraph() -> None:
    graph = ExecutionGraph("a")
    graph.transitions.observe("llm", END)
    assert graph.transitions.nx.edges["llm", END]["p"] == 1.0


def test_what_finished_programs_wanted_is_what_others_will() -> None:
    graph = ExecutionGraph("a")
    for peak in (100, 300):
        graph.finished(ProgramSummary(peak, 1.0, peak / 10))
    assert graph.stats.mean_peak_tokens == 200
    assert graph.stats.mean_turnaround == 20.0


def test_a_forecast_says_what_is_known() -> None:
    graph = ExecutionGraph("a")
    forecast = graph.forecast("llm", "shell")
    assert forecast.seconds_p50 is None
    assert forecast.next == {}
    graph.durations.observe("shell", 1.0)
    assert graph.forecast("llm", "shell").seconds_p50 == pytest.approx(1.0, rel=0.02)


def test_the_seconds_of_a_call_are_the_mean_over_calls_and_not_over_programs() -> None:
    graph = ExecutionGraph("a")
    graph.finished(ProgramSummary(10, service=4.0, steps=2))
    graph.finished(ProgramSummary(10, service=96.0, steps=8))
    graph.finished(ProgramSummary(10, service=7.0))  # of which no call is known
    assert graph.stats.step_seconds == pytest.approx(10.0)
    older = graph.saved() | {"sizes": [], "step_seconds": 3.0}
    assert ExecutionGraph.restore("a", older).stats.step_seconds == 3.0


def test_branches_that_are_there_are_not_expected_as_well() -> None:
    """A trunk that forks into two branches of three calls each, and goes on with one call."""
    graph = ExecutionGraph("a")
    for _ in range(50):
        graph.transitions.observe(START, "trunk")
        for _ in range(2):
            branch = graph.transitions.forked("trunk")
            for source, target in ((branch, "1"), ("1", "2"), ("2", "3"), ("3", END)):
                graph.transitions.observe(source, target)
        graph.transitions.observe("trunk", "join")
        graph.transitions.observe("join", END)
        graph.finished(ProgramSummary(10, service=8.0, steps=8))
    trunk, there = Position("trunk", True, False), Position("trunk", True, True)
    assert graph.service_left({trunk: 1}) == pytest.approx(7.0, rel=0.05)
    both = {there: 1, Position("1", False, False): 2}
    assert graph.service_left(both) == pytest.approx(7.0, rel=0.05)
    assert graph.service_left({there: 1}) == pytest.approx(1.0, rel=0.05)


def test_states_without_end_are_one_state_and_solved_rarely() -> None:
    graph = ExecutionGraph("a")
    before = START
    for number in range(2000):
        graph.transitions.observe(before, f"llm/{number}")
        before = f"llm/{number}"
        graph.transitions.calls_left(before)
    graph.transitions.observe(before, END)
    assert len(graph.transitions.nx) <= STATES + 3
    assert graph.transitions.canonical("llm/1999") == OTHER
    assert graph.transitions.canonical("llm/0") == "llm/0"
    assert graph.transitions.calls_left("llm/1999") == graph.transitions.calls_left(OTHER)
    assert graph.transitions.probabilities("llm/1999") == graph.transitions.probabilities(OTHER)
    again = ExecutionGraph.restore("a", json.loads(json.dumps(graph.saved())))
    assert again.saved() == graph.saved()
    assert len(json.dumps(graph.saved())) < 20_000


def test_what_follows_a_state_is_bounded() -> None:
    graph = ExecutionGraph("a")
    for number in range(100):
        graph.transitions.observe("llm", f"llm/{number}")
    assert len(graph.transitions.probabilities("llm")) <= SUCCESSORS + 1
    assert sum(graph.transitions.probabilities("llm").values()) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), max_size=300))
def test_old_moves_fade_like_all_others_of_their_state(moves: list[tuple[str, str]]) -> None:
    graph, counts = ExecutionGraph("a"), dict[tuple[str, str], float]()
    for source, target in moves:
        for edge in counts:
            counts[edge] *= 0.995 if edge[0] == source else 1.0
        counts[source, target] = counts.get((source, target), 0.0) + 1.0
        graph.transitions.observe(source, target)
    for (source, target), count in counts.items():
        whole = sum(n for edge, n in counts.items() if edge[0] == source)
        assert graph.transitions.probabilities(source)[target] == pytest.approx(count / whole)
        assert graph.transitions.nx.edges[source, target]["n"] == pytest.approx(count)


def test_forecasts_of_tools_without_end_are_checked_together() -> None:
    graph = ExecutionGraph("a")
    for number in range(1000):
        graph.calibrate(graph.forecast("llm", f"t{number}"), 1.0, "llm")
    assert len(graph.calibrations) <= 257
    assert sum(one.returns for one in graph.calibrations.values()) == 0
