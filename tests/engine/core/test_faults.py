"""Tolerance of faults that belong to no request."""

import pytest

from drawloom.engine.core.faults import Faults, as_exception
from drawloom.errors import EngineError


def _fail(faults: Faults) -> None:
    with faults.tolerate("planning"):
        raise ValueError("no")


def test_faults_that_repeat_without_a_completed_step_end_the_engine() -> None:
    faults = Faults()
    for _ in range(5):
        _fail(faults)
    faults.reset()
    for _ in range(5):
        _fail(faults)
    with pytest.raises(EngineError, match="planning failed 6 times"):
        _fail(faults)


def test_what_must_end_the_thread_is_not_turned_into_a_failed_request() -> None:
    class Panic(BaseException):
        pass

    assert isinstance(as_exception(Panic()), EngineError)
    error = ValueError("no")
    assert as_exception(error) is error
    with pytest.raises(KeyboardInterrupt):
        as_exception(KeyboardInterrupt())
