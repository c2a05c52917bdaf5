"""Which of several branches decided, so that a resumed program follows the same one."""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from drawloom.errors import ReplayMismatch, StoreError
from drawloom.runtime.execution.program import Program, Scope

T = TypeVar("T")


class Choice:
    """Record which branch of one `gather` or `best_of` decided.

    The first branch to end decides, and that depends on the clock: when a program is replayed all
    branches end at once. If a decision is recorded, the other branches' scopes are abandoned: their
    recorded steps are replayed, and no further step begins.

    Attributes:
        key: key of its step.
        made: the branch that decided, if that is recorded.
    """

    def __init__(self, program: Program, key: str, name: str, scopes: Sequence[Scope]) -> None:
        self.key = key
        self._program, self._name = program, name
        row = program.recorded(key, "branch", name)
        self.made: int | None = row.detail["branch"] if row is not None else None
        if self.made is not None:
            if self.made >= len(scopes):
                raise program.mismatch(key, f"it had a branch {self.made}, and now has not")
            for index, scope in enumerate(scopes):
                scope.abandoned = scope.abandoned or index != self.made

    async def record(self, branch: int, error: BaseException | None) -> None:
        """Record that a branch decided, by its result or by its failure."""
        if isinstance(error, ReplayMismatch | StoreError) or self._program.diverged is not None:
            return
        failed = {} if error is None else {"error": type(error).__name__}
        store = self._program.dispatcher.store
        await store.add_branch(self._program.id, self.key, self._name, {"branch": branch} | failed)

    async def follow(self, tasks: Sequence["asyncio.Task[T]"]) -> "asyncio.Task[T]":
        """Wait for the recorded branch and end the others."""
        assert self.made is not None
        try:
            await asyncio.wait([tasks[self.made]])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return tasks[self.made]


__all__ = ["Choice"]
