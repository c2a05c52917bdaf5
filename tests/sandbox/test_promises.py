"""docs/security.md says what holds; each line of its table is tried here."""

import pytest

from drawloom.ids import new_id
from drawloom.sandbox.api.provider import Provider

from .conftest import Opener, put_probe
from .promises import ENV, PROMISES, Attempt, Promise, on_page, table


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.words)
async def test_what_the_page_says_is_so(
    provider: Provider, strangers: Opener, promise: Promise, probe: bytes
) -> None:
    stranger = await strangers()
    box = await provider.create(ENV, new_id("box"))
    await put_probe(box, probe)
    assert await promise.probe(Attempt(provider, stranger, box)) == promise.held
    await stranger.close()


def test_the_page_has_the_table_that_is_tried() -> None:
    assert on_page() == table(), "python -m tests.sandbox.promises"
