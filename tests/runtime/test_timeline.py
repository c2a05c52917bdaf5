"""A program's bars from its rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.runtime.store import ProgramRow, StepRow
from drawloom.runtime.timeline import Activity, make_track

ROW = ProgramRow("p", "solve", "m:solve", {}, {}, "done", None, None, 0.0, 1.0, 9.0)


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 500))
def test_a_prefill_is_split_into_new_tokens_and_those_computed_again(
    new: int, lost: int, kept: int
) -> None:
    detail = {
        "prompt": new + lost + kept, "cached": kept, "delta": [0] * new, "output": [1],
        "times": {"started": 2.0, "first": 4.0, "finished": 5.0},
    }  # fmt: skip
    step = StepRow("p", "0#0", "llm", "llm", "done", 1.5, 5.0, detail)
    seconds: dict[Activity, float] = {}
    for bar in make_track(ROW, [step], []).bars:
        seconds[bar.activity] = seconds.get(bar.activity, 0.0) + bar.end - bar.start
    again = seconds.get(Activity.RECOMPUTE, 0.0)
    assert seconds[Activity.PREFILL] + again == pytest.approx(2.0)
    assert again == pytest.approx(2.0 * lost / (new + lost))
    assert (Activity.RECOMPUTE in seconds) == (lost > 0)
