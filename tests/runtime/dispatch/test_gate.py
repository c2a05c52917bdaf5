"""Callers wait at a gate by key, and each gets what was decided for it."""

import asyncio

import pytest

from drawloom.errors import EngineError
from drawloom.runtime.dispatch.gate import Gate


async def test_a_caller_gets_the_value_of_its_key() -> None:
    gate = Gate[float]()
    one, other = gate.wait("one"), gate.wait("other")
    gate.open("other", 2.0)
    assert await other == 2.0
    assert not one.done() and len(gate) == 1


async def test_what_nobody_waits_for_may_be_decided() -> None:
    gate = Gate[None]()
    gate.open("gone", None)
    gate.refuse("gone", EngineError("late"))
    assert not len(gate)


async def test_a_cancelled_caller_is_forgotten() -> None:
    gate = Gate[None]()
    gate.wait("a").cancel()
    await asyncio.sleep(0)
    assert not len(gate)
    gate.open("a", None)


async def test_a_caller_that_was_done_leaves_the_next_of_its_key_alone() -> None:
    gate = Gate[float]()
    first = gate.wait("a")
    gate.open("a", 1.0)
    second = gate.wait("a")
    assert await first == 1.0
    await asyncio.sleep(0)
    gate.open("a", 2.0)
    assert await second == 2.0


async def test_all_callers_are_refused_with_an_error_of_their_own() -> None:
    gate = Gate[None]()
    waiting = [gate.wait(key) for key in "ab"]
    gate.refuse_all(lambda: EngineError("draining"))
    errors = []
    for future in waiting:
        with pytest.raises(EngineError, match="draining") as caught:
            await future
        errors.append(caught.value)
    assert errors[0] is not errors[1] and not len(gate)
