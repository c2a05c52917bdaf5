"""Branches of a program that run at the same time: all of them, or the best."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from drawloom.errors import ConfigError
from drawloom.runtime.dispatch.env_claim import Owner
from drawloom.runtime.execution.branch_choice import Choice
from drawloom.runtime.execution.program import _scope, running
from drawloom.runtime.sdk.chat import Chat

T = TypeVar("T")


async def gather(*branches: Callable[[], Awaitable[T]]) -> list[T]:
    """Run branches side by side: ``await gather(lambda: a(x), lambda: b(y))``.

    Each is given names of its own, so a resumed program finds its steps whatever order they ran
    in. The first failure cancels the rest.
    """
    program, scope = running(), running().scope
    place = scope.next()
    scopes = [scope.branch(f"{place}.{i}") for i in range(len(branches))]
    choice = Choice(program, f"gather{place}", "gather", scopes)

    async def one(index: int, branch: Callable[[], Awaitable[T]]) -> T:
        _scope.set(scopes[index])
        return await branch()

    tasks: list[asyncio.Task[T]] = []
    if choice.made is not None:  # that branch failed, and ended the others
        tasks = [asyncio.create_task(one(i, b)) for i, b in enumerate(branches)]
        failed = await choice.follow(tasks)
        failed.result()
        raise program.mismatch(choice.key, f"branch {choice.made} failed, and now does not")
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(i, b)) for i, b in enumerate(branches)]
    except BaseExceptionGroup as several:
        first = several.exceptions[0]
        failing = (t for t in tasks if not t.cancelled() and t.exception() is first)
        await choice.record(tasks.index(next(failing)), first)
        raise first from None
    return [task.result() for task in tasks]


async def best_of(
    n: int,
    attempt: Callable[[Chat], Awaitable[T]],
    chat: Chat,
    *,
    key: Callable[[T], Any],
    until: Callable[[T], bool] | None = None,
    fork_env: bool = False,
) -> T:
    """Fork a chat `n` times, try in each, return the result with the greatest `key`.

    As soon as `until` holds for a result the others are cancelled, and what they held is free.
    A branch that raises is out; when all do, the first error is raised. With `fork_env` each branch
    has environments of its own, that begin with the files of the program's as they are now; those
    of the best become the program's. Raises `SandboxError` when they cannot be forked.
    """
    if n < 1:
        raise ConfigError(f"best_of({n}): at least one attempt")
    program, scope = running(), running().scope
    place, branches, owner = scope.next(), chat.fork(n), program.owner
    scopes = [scope.branch(f"{place}.{i}", own_envs=fork_env) for i in range(n)]
    choice = Choice(program, f"best{place}", "best_of", scopes)
    environments = program.dispatcher.environments
    owners = [Owner(program.id, s.env_branch) for s in scopes] if fork_env else []
    if fork_env:
        await environments.fork(owner, owners)

    async def one(index: int, branch: Chat) -> T:
        _scope.set(scopes[index])
        try:
            return await attempt(branch)
        finally:
            branch.close()

    tasks = [asyncio.create_task(one(i, b)) for i, b in enumerate(branches)]
    best: asyncio.Task[T] | None = None
    try:
        if choice.made is not None:
            decided = await choice.follow(tasks)
        else:
            decided = await _best(tasks, key, until)
            await choice.record(tasks.index(decided), decided.exception())
        best = decided if decided.exception() is None else None
        return decided.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if fork_env:
            winner = owners[tasks.index(best)] if best is not None else None
            await asyncio.shield(environments.join(owner, owners, winner))


async def _best(
    tasks: Sequence["asyncio.Task[T]"],
    key: Callable[[T], Any],
    until: Callable[[T], bool] | None,
) -> "asyncio.Task[T]":
    """Return the task with the best result; when all failed, the first that did."""
    good: list[asyncio.Task[T]] = []
    bad: list[asyncio.Task[T]] = []
    left = set(tasks)
    while left:
        finished, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(finished, key=tasks.index):
            if task.cancelled() or (error := task.exception()) is None:
                task.result()  # a branch that was cancelled cancels all
                if until is not None and until(task.result()):
                    return task
                good.append(task)
            elif isinstance(error, Exception):
                bad.append(task)
            else:
                raise error
    if not good:
        return bad[0]
    return max(good, key=lambda task: key(task.result()))


__all__ = ["best_of", "gather"]
