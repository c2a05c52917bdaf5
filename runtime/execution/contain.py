"""Failures of user code, kept to the call that they happened in."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dis import opmap
from types import CodeType
from typing import Any, TypeVar

from drawloom.errors import ToolError
from drawloom.tools.results import describe_error

T = TypeVar("T")


async def contained(call: Callable[[], Awaitable[T]]) -> T:
    """Await `call()`, and let no exception out that would end more than this call.

    `SystemExit`, `KeyboardInterrupt`, `CancelledError` and every other `BaseException` that the
    code itself raised become `ToolError`. A cancellation by the owner of this task, a timeout
    around it, Ctrl-C, and the end of the event loop pass through.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        return await call()
    except Exception:
        raise
    except BaseException as error:
        if _from_outside(error, task, before):
            raise
        raise ToolError(describe_error(error)) from error


async def in_own_task(code: Coroutine[Any, Any, T]) -> T:
    """Run `code` as a task, so that code which cancels its current task ends itself alone.

    A cancellation by the owner of this task reaches `code` and passes through. The end of a task
    that nobody here cancelled becomes `ToolError`.
    """
    owner = asyncio.current_task()
    before = owner.cancelling() if owner is not None else 0
    try:
        return await asyncio.create_task(code)
    except asyncio.CancelledError as error:
        if _from_outside(error, owner, before):
            raise
        raise ToolError(describe_error(error)) from error


def _from_outside(error: BaseException, task: "asyncio.Task[Any] | None", before: int) -> bool:
    if task is None or _current() is not task:  # it is being closed, not run
        return True
    if isinstance(error, asyncio.CancelledError):
        return task.cancelling() > before
    return isinstance(error, KeyboardInterrupt) and _by_signal(error)


def _current() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _by_signal(error: KeyboardInterrupt) -> bool:
    """Return whether the handler of Ctrl-C raised it, and not the code it came out of."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return False
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # it has no frame: the code was anywhere
        return place.tb_frame.f_code.co_code[place.tb_lasti] != opmap["RAISE_VARARGS"]
    code = getattr(getattr(handler, "func", handler), "__code__", None)
    return isinstance(code, CodeType) and place.tb_frame.f_code is code


__all__ = ["contained", "in_own_task"]
