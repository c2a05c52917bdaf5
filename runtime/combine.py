"""Branches of a program: all of them, or the best."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from drawloom.errors import ConfigError
from drawloom.runtime.chat import Chat
from drawloom.runtime.program import Scope, _scope, running

T = TypeVar("T")


async def gather(*branches: Callable[[], Awaitable[T]]) -> list[T]:
    """Run branches side by side: ``await gather(lambda: a(x), lambda: b(y))``.

    Each is given names of its own, so a resumed program finds its steps whatever order they ran
    in. The first failure cancels the rest.
    """
    place = running().scope.next()

    async def one(index: int, branch: Callable[[], Awaitable[T]]) -> T:
        _scope.set(Scope(f"{place}.{index}/"))
        return await branch()

    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(i, b)) for i, b in enumerate(branches)]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return [task.result() for task in tasks]


async def best_of(
    n: int,
    attempt: Callable[[Chat], Awaitable[T]],
    chat: Chat,
    *,
    key: Callable[[T], Any],
    until: Callable[[T], bool] | None = None,
) -> T:
    """Fork a chat `n` times, try in each, return the result with the greatest `key`.

    As soon as `until` holds for a result the others are cancelled, and what they held is free.
    A branch that raises is out; when all do, the first error is raised.
    """
    if n < 1:
        raise ConfigError(f"best_of({n}): at least one attempt")
    place, branches = running().scope.next(), chat.fork(n)

    async def one(index: int, branch: Chat) -> T:
        _scope.set(Scope(f"{place}.{index}/"))
        try:
            return await attempt(branch)
        finally:
            branch.close()

    tasks = [asyncio.ensure_future(one(i, b)) for i, b in enumerate(branches)]
    try:
        return await _best(tasks, key, until)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _best(
    tasks: Sequence["asyncio.Future[T]"],
    key: Callable[[T], Any],
    until: Callable[[T], bool] | None,
) -> T:
    results: list[T] = []
    errors: list[BaseException] = []
    for finished in asyncio.as_completed(tasks):
        try:
            value = await finished
        except Exception as error:
            errors.append(error)
            continue
        if until is not None and until(value):
            return value
        results.append(value)
    if not results:
        raise errors[0]
    return max(results, key=key)


__all__ = ["best_of", "gather"]
