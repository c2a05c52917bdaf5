"""`@agent`: an async function that runs as a program."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from drawloom.errors import ConfigError
from drawloom.runtime.budget import Budget
from drawloom.tools.tool import Tool

P = ParamSpec("P")
R = TypeVar("R")


class Agent(Generic[P, R]):
    """An agent's code and what the scheduler should know of its programs.

    Calling it inside a running program runs it as part of that program; elsewhere it runs as the
    plain function it is, and fails where it needs a model.
    """

    def __init__(
        self,
        fn: Callable[P, Awaitable[R]],
        *,
        system: str = "",
        tools: Sequence[Tool[..., Any]] = (),
        budget: Budget | None = None,
        deadline: float | None = None,
        priority: int = 0,
        tenant: str = "default",
        expect_tokens: int | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        name: str | None = None,
    ) -> None:
        self.name: str = name or fn.__name__
        if not asyncio.iscoroutinefunction(fn):
            raise ConfigError(f"agent {self.name}: write it as `async def`")
        names = [t.name for t in tools]
        if twice := {n for n in names if names.count(n) > 1}:
            raise ConfigError(f"agent {self.name}: two tools are named {sorted(twice)}")
        self.fn = fn
        self.system = system
        self.tools = tuple(tools)
        self.budget = budget or Budget()
        self.deadline, self.priority, self.tenant = deadline, priority, tenant
        self.expect_tokens = expect_tokens
        self.max_tokens, self.temperature = max_tokens, temperature
        self.entry = f"{fn.__module__}:{fn.__qualname__}"
        """Where `drawloom resume` finds it again."""
        update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<agent {self.name}>"


class AgentDecorator(Protocol):
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Agent[P, R]: ...


@overload
def agent(fn: Callable[P, Awaitable[R]], /) -> Agent[P, R]: ...
@overload
def agent(
    *,
    system: str = "",
    tools: Sequence[Tool[..., Any]] = (),
    budget: Budget | None = None,
    deadline: float | None = None,
    priority: int = 0,
    tenant: str = "default",
    expect_tokens: int | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    name: str | None = None,
) -> AgentDecorator: ...


def agent(fn: Callable[..., Awaitable[Any]] | None = None, /, **options: Any) -> Any:
    """Declare an agent: ``@agent`` or ``@agent(system=…, tools=[…], …)`` over an ``async def``.

    Args:
        system: the system prompt of its chats.
        tools: what its model may call.
        budget: the most that one program may spend.
        deadline: seconds from submission by which a program should be done.
        priority: higher goes first.
        tenant: whose program it is; tenants never share KV.
        expect_tokens: the longest context a program usually has, until the runtime has seen some.
        max_tokens: output tokens of one LLM call, unless the call says otherwise.
        temperature: of its LLM calls, unless the call says otherwise.
    """
    if fn is not None:
        return Agent(fn)
    return lambda function: Agent(function, **options)


__all__ = ["Agent", "AgentDecorator", "agent"]
