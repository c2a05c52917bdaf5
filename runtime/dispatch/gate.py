"""Gate: futures by key, for callers that wait for a decision of the scheduler."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Gate(Generic[T]):
    """Hold callers until what they wait for is decided.

    A key belongs to one caller at a time. It is forgotten once its future is done.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, key: str) -> "asyncio.Future[T]":
        """Return the future of a key, which `open` or `refuse` completes."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        future.add_done_callback(lambda done: self._forget(key, done))
        return future

    def open(self, key: str, value: T) -> None:
        """Let the caller of a key through; harmless when nobody waits."""
        future = self._waiting.pop(key, None)
        if future is not None and not future.done():
            future.set_result(value)

    def refuse(self, key: str, error: Exception) -> None:
        """Raise an error at the caller of a key; harmless when nobody waits."""
        future = self._waiting.pop(key, None)
        if future is not None and not future.done():
            future.set_exception(error)

    def refuse_all(self, error: Callable[[], Exception]) -> None:
        """Raise an error, a new one for each, at all callers that wait."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error())
                future.exception()  # a client may be gone by now: nobody need ask for it

    def forget(self, key: str) -> None:
        """Drop a key without completing its future."""
        self._waiting.pop(key, None)

    def _forget(self, key: str, done: "asyncio.Future[T]") -> None:
        if self._waiting.get(key) is done:  # the key may have a new caller
            del self._waiting[key]


__all__ = ["Gate"]
