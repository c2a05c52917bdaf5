"""`@agent`: a function that runs as a program."""

import inspect
import math
from collections.abc import Awaitable, Callable, Iterable
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from drawloom.errors import ConfigError
from drawloom.runtime.execution.budget import Budget
from drawloom.tools.json_schema import underlying
from drawloom.tools.threads import call_in_thread
from drawloom.tools.tool import Tool, as_tool

P = ParamSpec("P")
R = TypeVar("R")


class Agent(Generic[P, R]):
    """Hold the code of an agent, and what the scheduler should know of its programs.

    Called inside a running program it runs as part of that program. Called elsewhere it runs as a
    plain function, and fails where it needs a model.
    """

    def __init__(
        self,
        fn: Callable[P, Awaitable[R]],
        *,
        system: str = "",
        tools: Iterable[Tool[..., Any] | Callable[..., Any]] = (),
        budget: Budget | None = None,
        deadline: float | None = None,
        priority: int = 0,
        tenant: str = "default",
        expect_tokens: int | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        name: str | None = None,
    ) -> None:
        if not callable(fn):
            raise ConfigError(f"{fn!r} is no agent: put @agent over a function")
        function = underlying(fn)
        self.name: str = name or str(getattr(function, "__name__", type(fn).__name__))
        if not self.name.isprintable():  # it is shown by `ps`, and not every store takes it
            raise ConfigError(
                f"agent name {self.name!r} has characters that cannot be printed: @agent(name=…)"
            )
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise ConfigError(f"agent {self.name} yields: an agent returns its result")
        self.threaded = not inspect.iscoroutinefunction(function)
        self.tools = _tools(self.name, tools)
        self.fn = fn
        self.system = system
        self.budget = budget or Budget()
        if not math.isfinite(priority):
            raise ConfigError(f"agent {self.name}: priority={priority} is not a finite number")
        self.deadline, self.priority, self.tenant = deadline, priority, tenant
        self.expect_tokens = expect_tokens
        self.max_tokens, self.temperature = max_tokens, temperature
        module, place = (getattr(function, name, "") for name in ("__module__", "__qualname__"))
        self.entry = f"{module}:{place}"
        """Where `drawloom resume` finds it again."""
        update_wrapper(self, fn, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        if self.threaded:
            return call_in_thread(self.name, lambda: self.fn(*args, **kwargs))
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<agent {self.name}>"


def _tools(agent: str, given: Iterable[Any]) -> tuple[Tool[..., Any], ...]:
    """Return the tools of an agent.

    Raises:
        ConfigError: one of them is no tool, or two have one name.
    """
    if isinstance(given, (Tool, str)) or not isinstance(given, Iterable):
        raise ConfigError(f"agent {agent}: tools={given!r} is no list of tools: tools=[…]")
    try:
        tools = tuple(as_tool(tool) for tool in given)
    except ConfigError as error:
        raise ConfigError(f"agent {agent}: {error}") from None
    names = [tool.name for tool in tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f"agent {agent}: two tools are named {sorted(twice)}; give one another name with "
            "@tool(name=…), and those of MCP servers a prefix with McpServer(…, name=…)"
        )
    return tools


class AgentDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Agent[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Agent[P, R]: ...


@overload
def agent(fn: Callable[P, Awaitable[R]], /) -> Agent[P, R]: ...
@overload
def agent(fn: Callable[P, R], /) -> Agent[P, R]: ...
@overload
def agent(
    *,
    system: str = "",
    tools: Iterable[Tool[..., Any] | Callable[..., Any]] = (),
    budget: Budget | None = None,
    deadline: float | None = None,
    priority: int = 0,
    tenant: str = "default",
    expect_tokens: int | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    name: str | None = None,
) -> AgentDecorator: ...


def agent(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Declare an agent: ``@agent`` or ``@agent(system=…, tools=[…], …)`` over a function.

    Write it as ``async def``: a model, tools and other agents are awaited. A plain ``def`` is for
    code that needs none of them; it **runs in a thread of its own**, which nothing can stop: when
    its program is cancelled or its budget spent, it goes on unseen until it returns.

    Args:
        system: the system prompt of its chats.
        tools: what its model may call: tools, and functions that `@tool` would make tools of.
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
