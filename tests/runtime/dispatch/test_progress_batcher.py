"""Progress of calls reaches the scheduler once an engine step."""

import asyncio

from drawloom.runtime.dispatch.progress_batcher import ProgressBatcher
from drawloom.runtime.scheduler.events import Decoded, Event


async def test_calls_of_one_engine_step_are_one_event() -> None:
    events = list[Event]()
    batcher = ProgressBatcher(events.append, "engine")
    batcher.add("p", "s1", 10)
    batcher.add("q", "s2", 20)
    assert events == []
    await asyncio.sleep(0)
    assert events == [Decoded("engine", (("p", "s1", 10), ("q", "s2", 20)))]
    await asyncio.sleep(0)
    assert len(events) == 1


async def test_only_the_last_context_of_a_call_is_reported() -> None:
    events = list[Event]()
    batcher = ProgressBatcher(events.append, "engine")
    batcher.add("p", "s1", 10)
    batcher.add("p", "s1", 11)
    batcher.flush()
    batcher.flush()
    assert events == [Decoded("engine", (("p", "s1", 11),))]
