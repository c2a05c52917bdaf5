"""Tool slots: how many tool calls run in environments at a time."""

import asyncio
import heapq
from itertools import count


class ToolSlots:
    """`count` slots, the waiting call of lowest priority first, equals as they came."""

    def __init__(self, count_: int) -> None:
        self.count, self.used = count_, 0
        self._numbers = count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    def ask(self, future: "asyncio.Future[None]", priority: float) -> None:
        """Resolve `future` when there is a slot for it; whoever awaited it must `leave`."""
        heapq.heappush(self._waiting, (priority, next(self._numbers), future))
        self._give()

    def leave(self) -> None:
        """A call is over."""
        self.used -= 1
        self._give()

    def _give(self) -> None:
        while self._waiting and self.used < self.count:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():  # who was cancelled waits no longer
                self.used += 1
                future.set_result(None)


__all__ = ["ToolSlots"]
