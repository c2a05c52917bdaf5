"""Plain functions called from the event loop, each in a thread of its own."""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any


async def call_in_thread(name: str, call: Callable[[], Any]) -> Any:
    """Run `call` in a new thread with this task's context variables, and return its result.

    An awaitable result is awaited. What `call` raises is raised, `SystemExit` included. A thread
    cannot be stopped: if this is cancelled, it goes on, and its result is dropped. It keeps no
    process from ending.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = copy_context()

    def deliver(value: Any, error: BaseException | None) -> None:
        if not outcome.done():
            outcome.set_result((value, error))

    def body() -> None:
        value, error = None, None
        try:
            value = context.run(call)
        except BaseException as raised:  # also StopIteration, that no future takes
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(deliver, value, error)

    threading.Thread(target=body, name=f"drawloom-{name}", daemon=True).start()
    value, error = await outcome
    if error is not None:
        raise error
    return await value if inspect.isawaitable(value) else value


__all__ = ["call_in_thread"]
