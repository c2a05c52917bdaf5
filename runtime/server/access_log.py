"""Access log: one line for each request, with its program, tokens, cache hits and times."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drawloom.engine.api.engine import RequestUsage

log = logging.getLogger("drawloom.access")

_PROBES = frozenset({"/health", "/metrics"})
RECORD = "drawloom.record"


@dataclass(slots=True)
class RequestRecord:
    """Collect the facts about a request that only its handler knows.

    Attributes:
        program: name of its program.
        usages: one for each complete choice; times by `time.monotonic`.
    """

    program: str = ""
    usages: Sequence[RequestUsage] = ()

    def fields(self, began: float) -> str:
        """Return the log line's fields of tokens and waiting.

        Args:
            began: when the request began, by `time.monotonic`.
        """
        words = [f"program={_plain(self.program)}"] if self.program else []
        if self.usages:
            first = self.usages[0]
            words += [
                f"prompt={first.prompt_tokens}",
                f"cached={first.cached_tokens}",
                f"output={sum(usage.output_tokens for usage in self.usages)}",
                f"waited={max(0.0, first.started - began):.3f}s",
            ]
        return " ".join(words)


class AccessLog:
    """Log each request when its response has ended (ASGI middleware).

    Handlers fill the `RequestRecord` at ``scope[RECORD]``. Probes are logged at DEBUG.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        record = RequestRecord()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app({**scope, RECORD: record}, receive, watched)
        finally:
            level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
            line = f"{scope['method']} {_plain(scope['path'])} {status or 'aborted'}"
            log.log(level, "%s %s took=%.3fs", line, record.fields(began), time.monotonic() - began)


def _plain(text: str) -> str:
    """Replace control characters and cut long text, so that an entry stays one line."""
    shown = text if len(text) <= 200 else text[:199] + "…"
    return "".join(c if c.isprintable() else "?" for c in shown)


__all__ = ["RECORD", "AccessLog", "RequestRecord"]
