"""The event bus: what happens, for whoever wants to watch."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

_BACKLOG = 10_000


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to a program; `kind` is noun.verb, `at` wall-clock seconds."""

    at: float
    program: str
    kind: str
    detail: dict[str, Any] = field(default_factory=dict)


class EventBus(Protocol):
    def publish(self, notice: Notice) -> None: ...

    def subscribe(self) -> AsyncIterator[Notice]:
        """Everything published from now on, until the bus is closed."""
        ...

    async def close(self) -> None: ...


class LocalBus:
    """Within this process. A watcher that falls behind loses the oldest, never stops the work."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Notice | None]] = set()

    def publish(self, notice: Notice) -> None:
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(notice)

    def subscribe(self) -> AsyncIterator[Notice]:
        queue: asyncio.Queue[Notice | None] = asyncio.Queue(_BACKLOG)
        self._queues.add(queue)
        return self._read(queue)

    async def _read(self, queue: "asyncio.Queue[Notice | None]") -> AsyncIterator[Notice]:
        try:
            while (notice := await queue.get()) is not None:
                yield notice
        finally:
            self._queues.discard(queue)

    async def close(self) -> None:
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)


__all__ = ["EventBus", "LocalBus", "Notice"]
