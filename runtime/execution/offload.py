"""Rendering and tokenising off the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_SHORT = 4096
_WORKERS = ThreadPoolExecutor(2, thread_name_prefix="drawloom-prompt")


async def offload(work: Callable[[], T], size: int) -> T:
    """Run work on a text of `size` characters without holding up the event loop.

    A short text takes a few milliseconds at most and is worked on at once; a long one goes to one
    of two threads, so long prompts wait for each other and nothing else does.
    """
    if size < _SHORT:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_WORKERS, work)


__all__ = ["offload"]
