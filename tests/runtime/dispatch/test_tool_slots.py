"""Tool calls take turns where slots are limited."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from drawloom.runtime.dispatch.tool_slots import ToolSlots


class _Calls:
    """Calls that hold a slot until they are told to end."""

    def __init__(self, slots: int) -> None:
        self.slots, self.running = ToolSlots(slots), list[str]()
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str) -> None:
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._call(name))

    async def _call(self, name: str) -> None:
        async with self.slots.slot(name, lambda: None):
            self.running.append(name)
            await self.ends[name].wait()
            self.running.remove(name)

    async def settle(self) -> list[str]:
        for _ in range(5):
            await asyncio.sleep(0)
        return self.running

    async def end_all(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


@contextlib.asynccontextmanager
async def _calls(slots: int, names: str) -> AsyncIterator[_Calls]:
    calls = _Calls(slots)
    for name in names:
        calls.begin(name)
    await calls.settle()
    yield calls
    await calls.end_all()


async def test_the_call_of_lowest_priority_is_next() -> None:
    async with _calls(1, "abc") as calls:
        for name, priority in (("a", 0.0), ("b", 5.0), ("c", 1.0)):
            calls.slots.start(name, priority)
        assert await calls.settle() == ["a"]
        calls.ends["a"].set()
        assert await calls.settle() == ["c"]


async def test_a_cancelled_call_gives_its_slot_and_its_turn_away() -> None:
    async with _calls(1, "abc") as calls:
        for name in "abc":
            calls.slots.start(name, 0.0)
        await calls.settle()
        calls.tasks["b"].cancel()
        calls.tasks["a"].cancel()
        assert (await calls.settle())[-1:] == ["c"]


async def test_no_call_runs_before_the_scheduler_lets_it() -> None:
    async with _calls(2, "a") as calls:
        assert await calls.settle() == []
        calls.slots.start("gone", 0.0)
        calls.slots.start("a", 0.0)
        assert await calls.settle() == ["a"]
