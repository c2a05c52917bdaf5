"""ToolDurations: quantiles of what was seen, from the narrowest view of which enough is known."""

import json
from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.graph.quantile_sketch import ACCURACY, DECAY, QuantileSketch
from drawloom.graph.tool_durations import ToolDurations, tools_key, without_buckets

SECONDS = st.one_of(st.just(0.0), st.floats(1e-3, 9e4))


def _sketch(values: list[float]) -> QuantileSketch:
    found = QuantileSketch()
    for value in values:
        found.observe(value)
    return found


def _weighted(values: list[float], share: float) -> float:
    """The quantile of observations of which the older ones have faded."""
    weights = [DECAY ** (len(values) - 1 - at) for at in range(len(values))]
    total, sofar = sum(weights), 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        sofar += weight
        if sofar >= share * total * (1 - 1e-9):
            return value
    raise AssertionError


@given(values=st.lists(SECONDS, min_size=1, max_size=60), share=st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_was_seen_there(values: list[float], share: float) -> None:
    near = [_weighted(values, min(1.0, max(1e-6, share + d))) for d in (-1e-6, 0.0, 1e-6)]
    found = _sketch(values).quantile(share)
    assert found is not None
    assert any(found == pytest.approx(value, rel=1.1 * ACCURACY, abs=1e-3) for value in near)


@given(values=st.lists(SECONDS, min_size=1, max_size=60), limit=SECONDS)
def test_the_share_within_a_limit_is_as_it_was_seen(values: list[float], limit: float) -> None:
    found = _sketch(values).share_within(limit)
    weights = [DECAY ** (len(values) - 1 - at) for at in range(len(values))]
    pairs = sorted(zip(values, weights, strict=True))
    bounds = [
        sum(w for _, w in pairs[: bisect_right([v for v, _ in pairs], x)]) / sum(weights)
        for x in (limit * (1 - 3 * ACCURACY) - 1e-3, limit * (1 + 3 * ACCURACY) + 1e-3)
    ]
    assert bounds[0] - 1e-9 <= found <= bounds[1] + 1e-9


@given(st.lists(SECONDS, max_size=30), st.lists(SECONDS, max_size=30))
def test_two_sketches_together_are_one_of_everything(a: list[float], b: list[float]) -> None:
    both = _sketch(a)
    both.merge(_sketch(b))
    assert both.count == pytest.approx(_sketch(a).count + _sketch(b).count)
    for limit in (0.0, 1.0, 100.0):
        weights = [(s, s.count) for s in (_sketch(a), _sketch(b))]
        expected = sum(s.share_within(limit) * n for s, n in weights)
        assert both.share_within(limit) * both.count == pytest.approx(expected)


def test_what_was_long_ago_fades() -> None:
    sketch = _sketch([100.0] * 1000 + [1.0] * 1000)
    assert sketch.quantile(0.95) == pytest.approx(1.0, rel=ACCURACY)
    assert sketch.count == pytest.approx(1 / (1 - DECAY), rel=0.01)


def test_it_does_not_overflow_however_long_it_runs() -> None:
    sketch = _sketch([5.0] * 100_000)
    assert sketch.quantile(0.5) == pytest.approx(5.0, rel=ACCURACY)
    assert sketch.count == pytest.approx(1 / (1 - DECAY), rel=0.01)


@given(st.lists(SECONDS, max_size=40))
def test_a_sketch_goes_on_where_it_was(values: list[float]) -> None:
    mine = _sketch(values)
    again = QuantileSketch.restore(json.loads(json.dumps(mine.saved())))
    for share in (0.1, 0.5, 0.95):
        assert again.quantile(share) == mine.quantile(share)
    mine.observe(3.0)
    again.observe(3.0)
    assert again.count == pytest.approx(mine.count)


@pytest.mark.parametrize("bad", [[], {"x": 1}, {"-1": 1}, {"9999": 1}, {"1": -2}, {"1": "nan"}])
def test_what_is_no_sketch_is_refused(bad: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        QuantileSketch.restore(bad)  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError)):
        ToolDurations().restore({"shell": bad})


def test_a_key_falls_back_to_its_tool_a_declaration_and_everything() -> None:
    durations = ToolDurations()
    assert durations.quantile("bash:pytest", 0.5) is None
    durations.declare("bash", 2.0)
    assert durations.quantile("bash:pytest", 0.5) == pytest.approx(2.0, rel=ACCURACY)
    for _ in range(20):
        durations.observe("bash:ls", 0.1)
    assert durations.quantile("bash:pytest", 0.5) == pytest.approx(0.1, rel=ACCURACY)
    for _ in range(20):
        durations.observe("bash:pytest", 30.0)
    assert durations.quantile("bash:pytest", 0.05) == pytest.approx(30.0, rel=ACCURACY)
    assert durations.quantile("bash:ls", 0.95) == pytest.approx(0.1, rel=ACCURACY)
    assert durations.quantile("bash", 0.95) == pytest.approx(30.0, rel=ACCURACY)
    assert durations.quantile("unseen", 0.95) == pytest.approx(30.0, rel=ACCURACY)
    assert durations.share_within("bash:pytest", 25.0) == 0.0
    assert durations.share_within("bash:ls", 1.0) == 1.0
    assert len(durations.samples("bash")) == 100


def test_calls_made_together_are_a_key_of_their_own() -> None:
    assert without_buckets("bash:pytest+read+bash:ls") == "bash+read"
    durations = ToolDurations()
    for _ in range(10):
        durations.observe("bash:pytest+read", 9.0)
    assert durations.quantile("bash:make+read", 0.5) == pytest.approx(9.0, rel=ACCURACY)


@pytest.mark.parametrize("word", ["bash:{}", "tool{}", "bash+tool{}", "bash:{}+read"])
def test_words_without_end_are_told_apart_no_further(word: str) -> None:
    durations = ToolDurations()
    for number in range(2000):
        durations.observe(word.format(number), 1.0)
    assert len(durations.keys) <= 256 + 2
    assert durations.quantile(word.format(1999), 0.5) == pytest.approx(1.0, rel=ACCURACY)
    again = ToolDurations()
    again.restore(json.loads(json.dumps(durations.saved())))
    assert again.keys == durations.keys
    assert len(json.dumps(durations.saved())) < 20_000


def test_beyond_the_bound_tools_are_known_as_others_are_and_not_as_everything() -> None:
    durations = ToolDurations()
    for number in range(1000):
        durations.observe(f"tool{number}", 1.0 if number < 256 else 9.0)
    assert durations.quantile("tool900", 0.01) == pytest.approx(9.0, rel=ACCURACY)
    assert durations.quantile("tool7+tool901", 0.5) is not None


def test_many_tools_at_a_time_are_one_key() -> None:
    assert tools_key(["read", "bash", "read"]) == "bash+read"
    assert tools_key(map(str, range(100))) == tools_key(map(str, range(50)))


def test_what_two_runtimes_saw_is_put_together() -> None:
    one, other = ToolDurations(), ToolDurations()
    for _ in range(20):
        one.observe("bash", 1.0)
        other.observe("bash", 3.0)
        other.observe("read", 0.1)
    one.merge(other)
    assert one.keys == ["bash", "read"]
    assert one.share_within("bash", 2.0) == pytest.approx(0.5)
