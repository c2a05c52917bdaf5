"""Batcher of the progress of LLM calls: one event for each engine step."""

import asyncio
from collections.abc import Callable

from drawloom.runtime.scheduler.events import Decoded, Event


class ProgressBatcher:
    """Report the progress of calls to the scheduler, once all of an engine step have reported.

    Args:
        emit: hands an event to the scheduler.
        engine: id of the engine that the calls run on.
    """

    def __init__(self, emit: Callable[[Event], None], engine: str) -> None:
        self._emit, self._engine = emit, engine
        self._calls: dict[str, tuple[str, str, int]] = {}

    def add(self, program: str, step: str, context: int) -> None:
        """Note that a call's context has `context` tokens now."""
        if not self._calls:
            asyncio.get_running_loop().call_soon(self.flush)
        self._calls[step] = (program, step, context)

    def flush(self) -> None:
        """Report what was noted; events that follow are in order then."""
        calls, self._calls = tuple(self._calls.values()), {}
        if calls:
            self._emit(Decoded(self._engine, calls))


__all__ = ["ProgressBatcher"]
