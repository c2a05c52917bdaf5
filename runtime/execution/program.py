"""A program: one running instance of an agent, and what its chats and tools share."""

import asyncio
import contextlib
from collections.abc import Awaitable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from drawloom.errors import ConfigError, ReplayMismatch
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.execution.agent import Agent
from drawloom.runtime.execution.budget import Account
from drawloom.runtime.scheduler.events import ConversationEnded
from drawloom.runtime.store.store import StepRow
from drawloom.tools.chat_template import ChatTemplate
from drawloom.tools.tool import Tool
from drawloom.tools.tool_call import ToolCall

current_program: ContextVar["Program | None"] = ContextVar("drawloom_program", default=None)
_scope: ContextVar["Scope | None"] = ContextVar("drawloom_scope", default=None)


@dataclass(slots=True)
class Scope:
    """Where names are given out, in the order of the calls. Branches of a `gather` have their own,
    so that what they are called does not depend on who runs first. A branch with a `world` has
    environments of its own; one that is `abandoned` was given up by then, and begins no step."""

    path: str = ""
    count: int = 0
    world: str = ""
    abandoned: bool = False

    def next(self) -> str:
        self.count += 1
        return f"{self.path}{self.count - 1}"

    def branch(self, name: str, *, world: bool = False) -> "Scope":
        """The scope of a branch."""
        where = name.replace("/", ".") if world else self.world
        return Scope(f"{name}/", world=where, abandoned=self.abandoned)


@dataclass(slots=True, eq=False)
class Program:
    """`replay` holds the steps that a killed predecessor began, by key; `adopted` says that calls
    which were in flight in its environments went on, and may be asked for their results;
    `diverged` is where its code left the record, after which no step runs; `began` is when it
    first ran."""

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
        return _scope.get() or self.root

    @property
    def owner(self) -> str:
        """Whose environments this code uses: the program's, or those of a branch of it."""
        world = self.scope.world
        return f"{self.id}@{world}" if world else self.id

    @property
    def now(self) -> datetime | None:
        """The moment that chat templates are told: of a resumed program the same as before."""
        return datetime.fromtimestamp(self.began) if self.began is not None else None

    def recorded(self, key: str, kind: str, name: str) -> StepRow | None:
        """The step that was recorded under this key. Raises `ReplayMismatch` if it is another."""
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
        """Note that the code has left the record; the error to raise."""
        self.diverged = self.diverged or ReplayMismatch(
            f"program {self.id} at step {key}: {words}; resume it with the code that began it"
        )
        return self.diverged

    async def may_begin(self, row: StepRow | None = None) -> None:
        """Wait before a step whose end is not recorded: in a branch that the record says was given
        up, for ever. `row` is of a tool call that had begun by then."""
        if self.scope.abandoned:
            self.account.usage.tool_calls += row is not None
            await asyncio.Event().wait()

    def tool(self, name: str) -> Tool[..., Any] | None:
        return next((t for t in self.agent.tools if t.name == name), None)

    def end_conversation(self, conversation: str) -> None:
        self.dispatcher.emit(ConversationEnded(self.id, self.full(conversation)))

    def full(self, conversation: str) -> str:
        """A conversation's name among those of all programs."""
        return f"{self.id}:{conversation}"

    def call_tool(self, tool: Tool[..., Any], arguments: dict[str, Any]) -> Awaitable[Any]:
        """A tool that agent code called itself: `ToolHost`."""
        from drawloom.runtime.execution.tool_step import run_direct

        key = f"call{self.scope.next()}"
        return run_direct(self, tool, ToolCall(key, tool.name, arguments))

    def spawn(self, work: Awaitable[Any]) -> "asyncio.Task[Any]":
        """A task that ends with the program."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def stop_tasks(self) -> None:
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def running() -> Program:
    """The program that this code runs in. Raises `ConfigError` outside of one."""
    program = current_program.get()
    if program is None:
        raise ConfigError(
            "no program runs here: start the agent with `await Runtime(…).run(agent, …)`"
        )
    return program


__all__ = ["Program", "Scope", "current_program", "running"]
