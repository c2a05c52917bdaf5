"""Early end of an answer, before the model ends it."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import Delta, Engine, GenerateRequest
from drawloom.engine.sequence import FinishReason


async def generate_until(
    engine: Engine, request: GenerateRequest, enough: Callable[[], bool]
) -> AsyncGenerator[Delta, None]:
    """Stream a request until it ends, or until a condition is true after a delta.

    The last delta has the usage in either case; its output tokens are those that were yielded.

    Args:
        engine: the engine.
        request: the request.
        enough: the condition, checked after each delta. When it is true the request is cancelled
            and later deltas are dropped.
    """
    count, ended = 0, False
    async with aclosing(engine.generate(request)) as deltas:
        async for delta in deltas:
            if ended:
                if delta.usage is not None:
                    yield _last(delta, count)
                continue
            count += len(delta.tokens)
            yield delta
            if delta.finish is None and enough():
                ended = True
                cancelled = await _cancel(engine, request.id)
                if cancelled is not None:
                    yield _last(cancelled, count)
                    return


async def _cancel(engine: Engine, request: str) -> Delta | None:
    """Cancel a request and return its last delta.

    Returns None if the last delta is in the stream already, or if the engine does not return it;
    the caller then waits for the end of the stream.
    """
    tell = getattr(engine, "tell", None)
    delta: Delta | None = await tell(do.Cancel(request)) if tell is not None else None
    return delta if delta is not None and delta.usage is not None else None


def _last(delta: Delta, tokens: int) -> Delta:
    usage = delta.usage
    assert usage is not None
    reason = FinishReason.STOP
    return Delta(delta.request, (), "", (), reason, replace(usage, output_tokens=tokens))


__all__ = ["generate_until"]
