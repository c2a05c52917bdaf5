"""Progress of a tool call in its environment, as a resumed program must know it."""

import asyncio
from collections.abc import Awaitable, Callable


class Progress:
    """Track whether the code of an interrupted call may be entered again.

    A command's result is kept by the helper until the call is recorded, so a call that waits for
    its first command is entered again and given that result. Everything after depends on code that
    ran: once a first result is handed over, or anything else is asked of the environment, the call
    is marked in the store before that happens, and is reported as interrupted.

    Args:
        mark: commits that the call must not be entered again; None where it never is, or always
            may be.
    """

    def __init__(self, mark: Callable[[], Awaitable[None]] | None = None) -> None:
        self._mark = mark
        self._begun = False
        self._lock = asyncio.Lock()

    async def command(self, *, silent: bool) -> None:
        """Note that a command is about to start.

        Args:
            silent: it hands over no output before it ends.
        """
        first, self._begun = not self._begun, True
        if not first or not silent:
            await self.act()

    async def act(self) -> None:
        """Mark the call before something that must not happen again."""
        self._begun = True
        async with self._lock:
            if self._mark is not None:
                await self._mark()
                self._mark = None


__all__ = ["Progress"]
