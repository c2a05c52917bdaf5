"""Fixtures of the tests that cross rooms."""

from tests.fakes.scripted_engine import open_runtime

__all__ = ["open_runtime"]
