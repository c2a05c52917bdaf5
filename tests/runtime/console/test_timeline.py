"""A program's bars from its rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.runtime.console.timeline import RESUMED, Activity, make_track
from drawloom.runtime.store.store import DecisionRow, ProgramRow, StepRow

ROW = ProgramRow(
    "p",
    "solve",
    "m:solve",
    arguments={},
    options={},
    status="done",
    result=None,
    error=None,
    created=0.0,
    started=1.0,
    ended=9.0,
)


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 500))
def test_a_prefill_is_split_into_new_tokens_and_those_computed_again(
    new: int, lost: int, kept: int
) -> None:
    detail = {
        "prompt": new + lost + kept,
        "cached": kept,
        "delta": [0] * new,
        "output": [1],
        "times": {"started": 2.0, "first": 4.0, "finished": 5.0},
    }
    step = StepRow(
        "p", "0#0", "llm", name="llm", status="done", started=1.5, ended=5.0, detail=detail
    )
    seconds: dict[Activity, float] = {}
    for bar in make_track(ROW, [step], []).bars:
        seconds[bar.activity] = seconds.get(bar.activity, 0.0) + bar.end - bar.start
    again = seconds.get(Activity.RECOMPUTE, 0.0)
    assert seconds[Activity.PREFILL] + again == pytest.approx(2.0)
    assert again == pytest.approx(2.0 * lost / (new + lost))
    assert (Activity.RECOMPUTE in seconds) == (lost > 0)


_moments = st.lists(st.integers(0, 1000), min_size=6, max_size=6, unique=True).map(sorted)


@given(_moments, st.integers(0, 50))
def test_time_without_a_process_is_neither_work_nor_waiting(moments: list[int], wait: int) -> None:
    created, started, called, died, resumed, ended = moments
    row = ProgramRow(
        "p",
        "solve",
        "m:s",
        arguments={},
        options={},
        status="failed",
        result=None,
        error="E: x",
        created=created,
        started=started,
        ended=ended,
    )
    detail = {"arguments": {}, "env_wait": min(wait, ended - resumed)}
    step = StepRow(
        "p", "call0", "tool", name="slow", status="done", started=called, ended=ended, detail=detail
    )
    lease = DecisionRow("p", called, "LeaseKV", {"ttl": 1000.0, "answer": "accepted"})
    again = DecisionRow("p", resumed, RESUMED, {"since": died})
    times = {"started": ended, "first": ended, "finished": ended}
    later = StepRow(
        "p",
        "0#1",
        "llm",
        name="llm",
        status="done",
        started=ended,
        ended=ended,
        detail={"times": times, "prompt": 1, "cached": 0, "delta": [1], "output": []},
    )
    track = make_track(row, [step, later], [lease, again])
    assert track.error == "E: x"
    bars = [bar for bar in track.bars if bar.activity is not Activity.DEAD]
    assert all(bar.end <= died or bar.start >= resumed for bar in bars)
    dead = [(b.start, b.end) for b in track.bars if b.activity is Activity.DEAD]
    assert dead == [(died, resumed)]
    worked = [bar for bar in bars if bar.activity in (Activity.TOOL, Activity.ENV)]
    assert sum(b.end - b.start for b in worked) == ended - called - (resumed - died)
    held = [bar for bar in bars if bar.activity is Activity.HELD]
    assert sum(b.end - b.start for b in held) == started - created
