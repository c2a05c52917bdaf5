"""A rate fades, and is found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.runtime.scheduler.decayed_rate import DecayedRate


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60), st.floats(0.0, 100.0))
def test_a_rate_is_never_more_than_was_counted_and_fades(gaps: list[float], later: float) -> None:
    rate, now = DecayedRate(), 0.0
    for gap in gaps:
        now += gap
        rate.record(now)
    assert 0 < rate.per_second(now + later) <= 1.02 * len(gaps)
    assert rate.per_second(now + later + 1000) < 1e-6


def test_a_steady_rate_is_found() -> None:
    rate = DecayedRate()
    for tenth in range(3000):
        rate.record(tenth / 10)
    assert rate.per_second(300.0) == pytest.approx(10.0, rel=0.02)
