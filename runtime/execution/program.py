"""Program: one running instance of an agent, and the state that its chats and tools share."""

import asyncio
import contextlib
from collections.abc import Awaitable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from drawloom.errors import ConfigError, ReplayMismatch
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.dispatch.env_claim import Owner
from drawloom.runtime.execution.agent import Agent
from drawloom.runtime.execution.budget import Account
from drawloom.runtime.scheduler.events import ConversationEnded
from drawloom.runtime.store.store import StepRow
from drawloom.tools.chat_template import ChatTemplate
from drawloom.tools.tool import Tool

current_program: ContextVar["Program | None"] = ContextVar("drawloom_program", default=None)
_scope: ContextVar["Scope | None"] = ContextVar("drawloom_scope", default=None)


@dataclass(slots=True)
class Scope:
    """Give out the keys of steps and conversations, in the order of the calls.

    Branches of a `gather` have scopes of their own, so that their keys do not depend on which
    runs first.

    Args:
        path: prefix of all keys.
        count: keys given out so far.
        env_branch: the branch whose environments are used; empty: the program's own.
        abandoned: the branch was given up before; it begins no step.
    """

    path: str = ""
    count: int = 0
    env_branch: str = ""
    abandoned: bool = False

    def next(self) -> str:
        """Return the next key."""
        self.count += 1
        return f"{self.path}{self.count - 1}"

    def branch(self, name: str, *, own_envs: bool = False) -> "Scope":
        """Return the scope of a branch; with `own_envs` it has environments of its own."""
        where = name.replace("/", ".") if own_envs else self.env_branch
        return Scope(f"{name}/", env_branch=where, abandoned=self.abandoned)


@dataclass(slots=True, eq=False)
class Program:
    """Hold the state of one running program.

    Args:
        id: its id in the store and for the scheduler.
        agent: the agent that it runs.
        dispatcher: schedules its calls.
        template: the chat template of the model.
        account: its budget, and what it has used.
        replay: steps that a killed predecessor began, by key.
        root: the scope outside of branches.
        adopted: calls in flight in its environments went on, and may be asked for their results.
        diverged: where its code left the record; no step runs after that.
        began: Unix time at which it first ran.
        tasks: tasks that end with it.
    """

    id: str
    agent: Agent[..., Any]
    dispatcher: Dispatcher
    template: ChatTemplate
    account: Account
    replay: dict[str, StepRow] = field(default_factory=dict)
    root: Scope = field(default_factory=Scope)
    adopted: bool = False
    diverged: ReplayMismatch | None = None
    began: float | None = None
    tasks: set["asyncio.Task[Any]"] = field(default_factory=set)

    @property
    def scope(self) -> Scope:
        """Return the scope of the running code."""
        return _scope.get() or self.root

    @property
    def owner(self) -> Owner:
        """Return the owner of the environments that the running code uses: program or branch."""
        return Owner(self.id, self.scope.env_branch or None)

    @property
    def now(self) -> datetime | None:
        """Return the time that chat templates are told; a resumed program keeps its first."""
        return datetime.fromtimestamp(self.began) if self.began is not None else None

    def recorded(self, key: str, kind: str, name: str) -> StepRow | None:
        """Return the step that was recorded under a key, or None.

        Raises:
            ReplayMismatch: another step has that key.
        """
        if self.diverged is not None:
            raise self.diverged
        row = self.replay.get(key)
        if row is not None and (row.kind, row.name) != (kind, name):
            raise self.mismatch(
                key,
                f"its record says {row.kind} {row.name!r}, the code now does {kind} {name!r}",
            )
        return row

    def mismatch(self, key: str, words: str) -> ReplayMismatch:
        """Note that the code has left the record; return the error to raise."""
        self.diverged = self.diverged or ReplayMismatch(
            f"program {self.id} at step {key}: {words}; resume it with the code that began it"
        )
        return self.diverged

    async def may_begin(self, row: StepRow | None = None) -> None:
        """Wait for ever where a branch was given up; return at once otherwise.

        Args:
            row: record of a tool call that had begun by then.
        """
        if self.scope.abandoned:
            self.account.usage.tool_calls += row is not None
            await asyncio.Event().wait()

    def tool(self, name: str) -> Tool[..., Any] | None:
        """Return the agent's tool of a name, or None."""
        return next((t for t in self.agent.tools if t.name == name), None)

    def end_conversation(self, conversation: str) -> None:
        """Tell the scheduler that a conversation has ended."""
        self.dispatcher.emit(ConversationEnded(self.id, self.full(conversation)))

    def full(self, conversation: str) -> str:
        """Return a conversation's name among those of all programs."""
        return f"{self.id}:{conversation}"

    def spawn(self, work: Awaitable[Any]) -> "asyncio.Task[Any]":
        """Start a task that ends with the program."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def stop_tasks(self) -> None:
        """Cancel the program's tasks and wait for their end."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def running() -> Program:
    """Return the program that the running code belongs to.

    Raises:
        ConfigError: no program runs here.
    """
    program = current_program.get()
    if program is None:
        raise ConfigError(
            "no program runs here: start the agent with `await Runtime(…).run(agent, …)`"
        )
    return program


__all__ = ["Program", "Scope", "current_program", "running"]
