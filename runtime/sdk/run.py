"""`Run`: a program that was started."""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from drawloom.errors import Cancelled
from drawloom.runtime.dispatch.event_bus import EventBus, Notice
from drawloom.runtime.execution.budget import BudgetUsage
from drawloom.runtime.execution.program import Program

R = TypeVar("R")


class Run(Generic[R]):
    """Follow a program that was started: its result, its events, its end."""

    def __init__(self, program: Program, task: "asyncio.Task[R]", bus: EventBus) -> None:
        self._program, self._task, self._bus = program, task, bus

    @property
    def id(self) -> str:
        """Return the program's id."""
        return self._program.id

    @property
    def program(self) -> Program:
        """Return the program itself."""
        return self._program

    @property
    def done(self) -> bool:
        """Return whether the program has ended."""
        return self._task.done()

    @property
    def usage(self) -> BudgetUsage:
        return self._program.account.usage

    async def result(self) -> R:
        """Wait for the program and return what its agent returns.

        Raises:
            Cancelled: the program was cancelled.
            Exception: what the agent raised.
        """
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.cancelled():
                raise Cancelled(f"program {self.id} was cancelled") from None
            raise

    async def cancel(self) -> None:
        """Cancel the program and wait until everything that it held is free."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def events(self) -> AsyncIterator[Notice]:
        """Iterate over notices of the program from now until its end."""
        notices = aiter(self._bus.subscribe())
        while True:
            following = asyncio.ensure_future(anext(notices, None))
            try:
                await asyncio.wait([following, self._task], return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not following.done():
                    following.cancel()
            if not following.done() or (notice := following.result()) is None:
                return
            if notice.program == self.id:
                yield notice
                if notice.kind == "program.ended":
                    return


__all__ = ["Run"]
