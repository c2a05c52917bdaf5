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
    """A program that was started."""

    def __init__(self, program: Program, task: "asyncio.Task[R]", bus: EventBus) -> None:
        self._program, self._task, self._bus = program, task, bus

    @property
    def id(self) -> str:
        return self._program.id

    @property
    def program(self) -> Program:
        """The program itself."""
        return self._program

    @property
    def done(self) -> bool:
        return self._task.done()

    @property
    def usage(self) -> BudgetUsage:
        return self._program.account.usage

    async def result(self) -> R:
        """What the agent returns. Raises what it raised, `Cancelled` if it was cancelled."""
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.cancelled():
                raise Cancelled(f"program {self.id} was cancelled") from None
            raise

    async def cancel(self) -> None:
        """Stop it. When this returns everything it held is free."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def events(self) -> AsyncIterator[Notice]:
        """What happens to it from now on; nothing when it has ended."""
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
