"""Fixtures of the runtime's tests."""

from collections.abc import Iterator

import pytest

from tests.fakes.scripted_engine import open_runtime

from .store.postgres import Server, private_server, server_programs

__all__ = ["open_runtime", "postgres"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server that runs as long as the tests. Skips where none is installed."""
    programs = server_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: bash .ci/system")
    with private_server(programs) as server:
        yield server
