"""Graceful shutdown: refuse new requests, wait for running ones, end the rest with an error.

A client must be able to tell a complete answer from an interrupted one. So each request that runs
when a server stops completes, or ends with an error: the last event of a stream, or status 503.
"""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from drawloom.runtime.server.access import respond
from drawloom.runtime.server.openai_requests import HttpError

_ALWAYS = frozenset({"/health", "/metrics"})
_LAST_WORDS_SECONDS = 2.0


class Drain:
    """Count running requests and end them at shutdown (ASGI middleware).

    Attributes:
        cut: set when the requests that still run must end with an error.
        draining: new requests are refused.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.cut = asyncio.Event()
        self.draining = False

    @property
    def running(self) -> int:
        """Return the number of running requests."""
        return self._running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self.draining and scope["path"] not in _ALWAYS:
            await respond(send, shutting_down())
            return
        self._running += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def drain(self, seconds: float) -> bool:
        """Refuse new requests and wait for running ones; then end the rest with an error.

        Args:
            seconds: the longest wait.

        Returns:
            True if all of them completed in time.
        """
        self.draining = True
        if await self._wait(seconds):
            return True
        self.cut.set()
        await self._wait(_LAST_WORDS_SECONDS)
        return False

    async def _wait(self, seconds: float) -> bool:
        idle = asyncio.ensure_future(self._idle.wait())
        cut = asyncio.ensure_future(self.cut.wait())
        try:
            waited = {idle} if self.cut.is_set() else {idle, cut}
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return idle.done()
        finally:
            idle.cancel()
            cut.cancel()


def shutting_down() -> HttpError:
    """Return the error for requests that a stopping server refuses or ends."""
    return HttpError(503, "the server is shutting down; try again", code="server_shutting_down")


__all__ = ["Drain", "shutting_down"]
