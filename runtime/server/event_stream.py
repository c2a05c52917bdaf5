"""Server-sent events: encoding, keep-alive comments, and the end of a stream whose client left."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from drawloom.errors import DrawloomError
from drawloom.runtime.server.drain import shutting_down
from drawloom.runtime.server.errors import HttpError, wire_error
from drawloom.runtime.server.openai_encoding import JsonObject

log = logging.getLogger("drawloom.server")

_COMMENT_SECONDS = 15.0


async def encode_events(
    first: "asyncio.Future[JsonObject | None]",
    chunks: AsyncGenerator[JsonObject, None],
    cut: asyncio.Event,
) -> AsyncGenerator[str, None]:
    """Encode chunks as server-sent events.

    Comments every `_COMMENT_SECONDS` prevent read timeouts of the client. An error, or the end of
    the server, is the last event.

    Args:
        first: the first chunk; None if there is none.
        chunks: the other chunks.
        cut: set when the server ends its running requests.
    """
    task, ended = first, asyncio.ensure_future(cut.wait())
    try:
        while True:
            while not task.done() and not ended.done():
                either: tuple[asyncio.Future[Any], ...] = (task, ended)
                done, _ = await asyncio.wait(
                    either, timeout=_COMMENT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    yield ": waiting\n\n"
            if not task.done():
                raise shutting_down()
            chunk = task.result()
            if chunk is None:
                yield "data: [DONE]\n\n"
                return
            yield f"data: {json.dumps(chunk)}\n\n"
            task = asyncio.ensure_future(anext(chunks, None))
    except DrawloomError as error:
        yield f"data: {json.dumps(wire_error(error).body)}\n\n"
    except Exception as error:
        yield f"data: {json.dumps(unexpected(error).body)}\n\n"
    finally:
        for waiting in (task, ended):
            waiting.cancel()
        await asyncio.gather(task, ended, return_exceptions=True)
        await chunks.aclose()


class EventStream(Response):
    """Send server-sent events until they end or the client disconnects."""

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        headers: dict[str, str],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Args:
            events: the encoded events.
            headers: response headers.
            close: called at the end, also if no event was sent.
        """
        super().__init__(headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(disconnected(Request(scope, receive)))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await self._events.aclose()
            await self._close()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for event in self._events:
            body = {"type": "http.response.body", "body": event.encode(), "more_body": True}
            await send(body)
        await send({"type": "http.response.body", "body": b""})


async def disconnected(request: Request) -> None:
    """Wait until the client of a request disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def unexpected(error: Exception) -> HttpError:
    """Log an error that is a bug, and return the error for the client."""
    log.error("a request failed", exc_info=error)
    return HttpError(500, "this is a bug in drawloom; see the server's log")


__all__ = ["EventStream", "disconnected", "encode_events", "unexpected"]
