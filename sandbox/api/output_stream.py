"""Streaming of a command's output."""

import asyncio
import codecs
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from drawloom.environments import ExecResult
from drawloom.errors import SandboxError

Run = Callable[[Callable[[bytes], None]], Awaitable[ExecResult]]


class Stream:
    """Implement `Output`: reading starts the command, to stop reading ends it.

    Args:
        run: runs the command, with a function that takes its output.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._result: ExecResult | None = None

    @property
    def result(self) -> ExecResult:
        """Return the command's result. Raises `SandboxError` before its end."""
        if self._result is None:
            raise SandboxError("the command has not ended: read its output to the end first")
        return self._result

    async def __aiter__(self) -> AsyncIterator[str]:
        """Run the command and yield its output as text, as it comes."""
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        running = asyncio.ensure_future(self._run(pieces.put_nowait))
        running.add_done_callback(lambda _: pieces.put_nowait(None))
        yielded = 0
        try:
            while (piece := await pieces.get()) is not None:
                yielded += len(piece)
                if text := decoder.decode(piece):
                    yield text
            result = self._result = await running
            head = len(result.output) // 2 if result.truncated else len(result.output)
            if text := decoder.decode(result.output[yielded:head], final=True):
                yield text
            if rest := "".join(result.pieces[1:]):
                yield rest
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, SandboxError):
                await running


__all__ = ["Stream"]
