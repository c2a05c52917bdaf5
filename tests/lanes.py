"""Lanes of the suite: `make test` runs a part of each exhaustive test, `make test-all` all."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

QUICK, FULL = 30, 100  # examples of a property test that names no number


def slow_unless(values: Iterable[Any], quick: Iterable[Any]) -> list[Any]:
    """Mark every parameter as slow that is not among the quick ones.

    Args:
        values: all parameters of a test, in the order in which they run.
        quick: those of them that `make test` runs; each must be one of `values`.
    """
    every, kept = list(values), list(quick)
    assert all(value in every for value in kept), "a quick parameter is none of the parameters"
    return [
        value if value in kept else pytest.param(value, marks=pytest.mark.slow) for value in every
    ]


def examples(full: int) -> int:
    """Return the number of examples of a property test, which is `full` in `make test-all`."""
    share = settings.get_current_profile_name() == "full"
    return full if share else max(5, full * QUICK // FULL)
