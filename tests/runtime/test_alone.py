"""What calls take with nothing beside them is the quickest that was seen."""

from drawloom.runtime.scheduler.alone import Quickest


def test_what_was_never_seen_counts_nothing() -> None:
    assert Quickest().seconds(1000, 100) == 0.0


def test_a_busy_engine_does_not_make_it_slower() -> None:
    quickest = Quickest()
    quickest.learn(1000, 0.1, 100, 1.0)
    quickest.learn(1000, 3.0, 100, 20.0)
    assert quickest.seconds(2000, 50) == 0.2 + 0.5


def test_a_call_of_a_few_tokens_says_nothing() -> None:
    quickest = Quickest()
    quickest.learn(10, 1e-9, 2, 1e-9)
    quickest.learn(1000, 0.0, 100, 0.0)
    assert quickest.seconds(1000, 100) == 0.0
