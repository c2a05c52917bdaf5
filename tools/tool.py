"""`@tool`: an async function that a model may call."""

import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from drawloom.environments import Env, Sandbox
from drawloom.errors import ConfigError
from drawloom.tools.schema import Declared, Signature

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class ToolHost(Protocol):
    """Runs a tool that agent code called directly; set by the runtime around an agent."""

    def call_tool(self, tool: "Tool[..., Any]", arguments: dict[str, Any]) -> Awaitable[Any]: ...


tool_host: ContextVar[ToolHost | None] = ContextVar("drawloom_tool_host", default=None)


class Tool(Generic[P, R]):
    """A function with what a model and the scheduler must know of it.

    Calling it inside a running program is a step of that program: recorded, budgeted, run in the
    program's environment. Outside of one it runs as the plain function it is.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        env: Env | None = None,
        expect: float | None = None,
        timeout: float | None = 60.0,
        retries: int = 0,
        readonly: bool = False,
        idempotent: bool = False,
        limit: int | None = None,
        fresh: bool = False,
        signature: Signature | Declared | None = None,
    ) -> None:
        self.name = name or fn.__name__
        self.streams = inspect.isasyncgenfunction(fn)
        if not self.streams and not inspect.iscoroutinefunction(fn):
            raise ConfigError(f"tool {self.name}: write it as `async def`")
        if not self.name.isidentifier():
            raise ConfigError(f"tool name {self.name!r} is not an identifier")
        if retries < 0 or (timeout is not None and timeout <= 0):
            raise ConfigError(f"tool {self.name}: retries >= 0 and timeout > 0")
        self.fn = fn
        self.env = env
        self.expect = expect
        self.timeout = timeout
        self.retries = retries
        self.readonly = readonly
        self.idempotent = idempotent or readonly
        self.limit = limit
        self.fresh = fresh
        if fresh and env is None:
            raise ConfigError(f"tool {self.name} is fresh: give it an environment, env=Env(…)")
        self.signature = signature or Signature(fn, self.name)
        if self.signature.wants_sandbox and env is None:
            raise ConfigError(f"tool {self.name} takes a Sandbox: give it one, @tool(env=Env(…))")
        update_wrapper(self, fn)

    @property
    def schema(self) -> dict[str, Any]:
        """The function schema that chat templates render."""
        function = {
            "name": self.name,
            "description": self.signature.description,
            "parameters": self.signature.parameters,
        }
        return {"type": "function", "function": function}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        host = tool_host.get()
        if host is not None:
            return cast(Awaitable[R], host.call_tool(self, self._bind(args, kwargs)))
        if self.signature.wants_sandbox:
            raise ConfigError(
                f"tool {self.name} runs in an environment: call it inside a Runtime, "
                f"or call {self.name}.fn(sandbox, …) with one of yours"
            )
        return self._awaitable(self.fn(*args, **kwargs), _unheard)

    def run(
        self,
        arguments: dict[str, Any],
        sandbox: Sandbox | None,
        heard: Callable[[str], None] | None = None,
    ) -> Awaitable[R]:
        """Call the function with arguments a model gave; `heard` is told what it yields, as it
        does. Raises `ToolError` if they do not fit."""
        values = self.signature.validate(arguments)
        first = (sandbox,) if self.signature.wants_sandbox else ()
        return self._awaitable(self.fn(*first, **values), heard or _unheard)

    def _awaitable(self, called: Any, heard: Callable[[str], None]) -> Awaitable[R]:
        return cast(Awaitable[R], _joined(called, heard) if self.streams else called)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        names = list(self.signature.parameters.get("properties", ()))
        if len(args) > len(names):
            raise TypeError(f"{self.name}() takes {len(names)} arguments, {len(args)} given")
        bound = dict(zip(names, args, strict=False))
        if twice := bound.keys() & kwargs.keys():
            raise TypeError(f"{self.name}() got {sorted(twice)} twice")
        return bound | kwargs

    def __repr__(self) -> str:
        return f"<tool {self.name}>"


class ToolDecorator(Protocol):
    """What `@tool(…)` returns; a leading `Sandbox` parameter is the runtime's to give."""

    @overload
    def __call__(self, fn: Callable[Concatenate[Sandbox, P], Awaitable[R]], /) -> Tool[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Tool[P, R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[Sandbox, P], AsyncIterator[str]], /
    ) -> Tool[P, str]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[str]], /) -> Tool[P, str]: ...


@overload
def tool(fn: Callable[P, Awaitable[R]], /) -> Tool[P, R]: ...
@overload
def tool(fn: Callable[P, AsyncIterator[str]], /) -> Tool[P, str]: ...
@overload
def tool(
    *,
    name: str | None = None,
    env: Env | None = None,
    expect: float | None = None,
    timeout: float | None = 60.0,
    retries: int = 0,
    readonly: bool = False,
    idempotent: bool = False,
    limit: int | None = None,
    fresh: bool = False,
) -> ToolDecorator: ...


def tool(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Declare a tool: ``@tool`` or ``@tool(env=…, expect=…, …)`` over an ``async def``.

    One that yields strings answers with all of them joined; what it has yielded is in the model's
    KV cache before it ends, if it comes slowly or is long.

    Args:
        name: what the model calls it; the function's name if not given.
        env: the environment it runs in; the function then may take a `Sandbox` first.
        expect: seconds it usually takes, until the runtime has seen for itself.
        timeout: seconds after which it is stopped and the model is told; None for never.
        retries: how often a failed call is tried again before the model is told.
        readonly: it changes nothing, so it may start while the model is still decoding.
        idempotent: running it twice is harmless, so a crash may repeat it.
        limit: most characters of its answer that the model is shown.
        fresh: each call has an environment of its own, that nobody used before and nobody will;
            by default all calls of a program share one, and its files.
    """
    if fn is not None:
        return Tool(fn)
    return lambda function: Tool(function, **options)


async def _joined(pieces: Any, heard: Callable[[str], None]) -> str:
    said: list[str] = []
    async with aclosing(pieces):
        async for piece in pieces:
            if not isinstance(piece, str):
                raise TypeError(f"a tool that yields must yield str, not {type(piece).__name__}")
            said.append(piece)
            heard(piece)
    return "".join(said)


def _unheard(text: str) -> None: ...


def render(value: Any) -> str:
    """A tool's return value as the text that a model reads."""
    if isinstance(value, str):
        return value
    dump = getattr(value, "model_dump_json", None)
    if dump is not None:
        return str(dump())
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        return str(value)


__all__ = ["Tool", "ToolDecorator", "ToolHost", "render", "tool", "tool_host"]
