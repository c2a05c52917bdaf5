"""Tool slots: how many tool calls run in environments at a time."""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Callable
from itertools import count


class ToolSlots:
    """Give out slots to tool calls, the lowest priority first, equals as they came.

    Args:
        slots: how many calls may run at a time.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._numbers = count()
        self._ready: dict[str, asyncio.Future[None]] = {}
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    @contextlib.asynccontextmanager
    async def slot(self, call: str, announce: Callable[[], None]) -> AsyncIterator[None]:
        """Hold a slot for the time of the block.

        Args:
            call: name of the call, by which `start` knows it.
            announce: tells the scheduler that the call can run; `start` answers.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready[call] = future
        try:
            announce()
            await future
            yield
        finally:
            self._ready.pop(call, None)
            if future.done() and not future.cancelled():
                self._free += 1
                self._give()

    def start(self, call: str, priority: float) -> None:
        """Let a call have a slot when it is its turn; harmless when the call has gone."""
        future = self._ready.get(call)
        if future is not None:
            heapq.heappush(self._waiting, (priority, next(self._numbers), future))
            self._give()

    def _give(self) -> None:
        while self._waiting and self._free:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():  # a cancelled call waits no longer
                self._free -= 1
                future.set_result(None)


__all__ = ["ToolSlots"]
