"""`@tool`: a function that a model may call."""

import asyncio
import contextlib
import copy
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial, update_wrapper
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from drawloom.environments import Env, Sandbox
from drawloom.errors import ConfigError
from drawloom.tools.json_schema import Declared, Signature, underlying
from drawloom.tools.results import render
from drawloom.tools.threads import call_in_thread

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class ToolHost(Protocol):
    """Runs a tool that agent code called directly; set by the runtime around an agent."""

    def call_tool(self, tool: "Tool[..., Any]", arguments: dict[str, Any]) -> Awaitable[Any]: ...


tool_host: ContextVar[ToolHost | None] = ContextVar("drawloom_tool_host", default=None)


class Tool(Generic[P, R]):
    """Wrap a function with what a model and the scheduler must know of it.

    Calling it inside a running program is a step of that program: recorded, budgeted, run in the
    program's environment. Outside of one it runs as the plain function it is. Either way the call
    is awaited, whatever kind of function it is.

    Attributes:
        streams: it yields its answer in pieces.
        threaded: it is a plain `def`, so each call runs in a thread, which nothing can stop.
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
        self._of_class = isinstance(fn, classmethod)
        if isinstance(fn, (staticmethod, classmethod)):
            fn = fn.__func__
        if not callable(fn):
            raise ConfigError(f"{fn!r} is no tool: put @tool over a function")
        function = underlying(fn)
        self.name = name or _name(fn)
        self.streams = inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)
        self.threaded = not (
            inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        )
        if not self.name.isidentifier():
            raise ConfigError(f"tool name {self.name!r} is not an identifier: @tool(name=…)")
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
        if self.signature.wants_sandbox and self.threaded:
            raise ConfigError(
                f"tool {self.name} takes a Sandbox, whose methods are awaited: write it as "
                "`async def`"
            )
        update_wrapper(self, fn, updated=())  # an object's attributes are not the tool's

    @overload
    def __get__(self, instance: None, owner: type) -> "Tool[P, R]": ...
    @overload
    def __get__(self, instance: object, owner: type) -> "Tool[..., R]": ...
    def __get__(self, instance: object, owner: type) -> "Tool[..., R]":
        """Bind a method that is a tool to its instance, as Python binds a function."""
        to = owner if self._of_class else instance
        if not self.signature.is_method or to is None:
            return self
        bound = copy.copy(self)
        bound.fn = MethodType(self.fn, to)
        bound.signature = copy.copy(self.signature)
        bound.signature.is_method = False
        return bound

    @property
    def schema(self) -> dict[str, Any]:
        """Return the function schema that chat templates render."""
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
        if self.signature.is_method:
            raise ConfigError(f"{self.name} is a method: call it of an instance")
        if self.signature.wants_sandbox:
            raise ConfigError(
                f"tool {self.name} runs in an environment: call it inside a Runtime, "
                f"or call {self.name}.fn(sandbox, …) with one of yours"
            )
        return self._started(lambda: self.fn(*args, **kwargs), _unheard)

    def run(
        self,
        arguments: dict[str, Any],
        sandbox: Sandbox | None,
        heard: Callable[[str], None] | None = None,
    ) -> Awaitable[R]:
        """Call the function with a model's arguments; pass each piece that it yields to `heard`.

        Raises:
            ToolError: the arguments do not fit.
        """
        values, named = self.signature.call(self.signature.validate(arguments))
        first = (sandbox,) if self.signature.wants_sandbox else ()
        return self._started(lambda: self.fn(*first, *values, **named), heard or _unheard)

    def _started(self, call: Callable[[], Any], heard: Callable[[str], None]) -> Awaitable[R]:
        if self.threaded:
            work: Any = _in_thread(self.name, call, self.streams, heard)
        else:
            work = _joined(call(), heard) if self.streams else call()
        return cast(Awaitable[R], work)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        names = self.signature.names
        if len(args) > len(names):
            raise TypeError(f"{self.name}() takes {len(names)} arguments, {len(args)} given")
        bound = dict(zip(names, args, strict=False))
        if twice := bound.keys() & kwargs.keys():
            raise TypeError(f"{self.name}() got {sorted(twice)} twice")
        return bound | kwargs

    def __repr__(self) -> str:
        return f"<tool {self.name}>"


def as_tool(given: Any) -> Tool[..., Any]:
    """Return a tool as it is, and make a tool of any other function, as `@tool` does.

    Raises:
        ConfigError: it cannot be a tool.
    """
    if isinstance(given, MethodType) and isinstance(given.__func__, Tool):  # @classmethod @tool
        given = given.__func__.__get__(given.__self__, type(given.__self__))
    if not isinstance(given, Tool):
        try:
            given = Tool(given)
        except ConfigError as error:
            advice = "a tool is a function with annotated parameters and @tool over it"
            raise ConfigError(f"{error} ({advice})") from None
    if given.signature.is_method:
        raise ConfigError(f"tool {given.name} is a method: give that of an instance, or bind it")
    return cast(Tool[..., Any], given)


class ToolDecorator(Protocol):
    """Make a tool of a function, for ``@tool(…)``; the runtime gives a leading `Sandbox`."""

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
    def __call__(self, fn: Callable[P, Iterator[str]], /) -> Tool[P, str]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(fn: Callable[P, Awaitable[R]], /) -> Tool[P, R]: ...
@overload
def tool(fn: Callable[P, AsyncIterator[str]], /) -> Tool[P, str]: ...
@overload
def tool(fn: Callable[P, Iterator[str]], /) -> Tool[P, str]: ...
@overload
def tool(fn: Callable[P, R], /) -> Tool[P, R]: ...
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
    """Declare a tool: ``@tool`` or ``@tool(env=…, expect=…, …)`` over a function or method.

    Parameters are described by their annotations (`Annotated[int, Field(ge=1, description=…)]`,
    pydantic models, dataclasses, enums, …) and by the docstring in the style of Google, numpy or
    Sphinx. The result may be anything; what is no text becomes JSON, and what is too long for the
    model's context is cut, with a note.

    An ``async def`` runs in the event loop that serves every program: it must not block. A plain
    ``def`` **runs in a thread of its own**, at the same time as other calls, and cannot be stopped:
    after `timeout` the model is told, and the thread goes on (one that yields: to its next
    `yield`). What either raises, `SystemExit` included, fails that call alone.

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
            said.append(_checked(piece))
            heard(piece)
    return "".join(said)


async def _in_thread(
    name: str, call: Callable[[], Any], streams: bool, heard: Callable[[str], None]
) -> Any:
    """Run a plain function in a thread; otherwise do as `_joined`."""
    if not streams:
        return await call_in_thread(name, call)
    loop = asyncio.get_running_loop()

    def tell(piece: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(heard, piece)

    given_up = threading.Event()
    try:
        return await call_in_thread(name, lambda: "".join(_told(call(), tell, given_up)))
    finally:
        given_up.set()


def _told(
    pieces: Generator[Any, None, Any], heard: Callable[[str], None], given_up: threading.Event
) -> Iterator[str]:
    """Yield what a generator does, until nobody waits for it any more."""
    with contextlib.closing(pieces):
        for piece in pieces:
            if given_up.is_set():
                return
            heard(_checked(piece))
            yield piece


def _checked(piece: Any) -> str:
    if not isinstance(piece, str):
        raise TypeError(f"a tool that yields must yield str, not {type(piece).__name__}")
    return piece


def _unheard(text: str) -> None: ...


def _name(fn: Callable[..., Any]) -> str:
    """Return the name of a function, of what a partial calls, or of an object's class."""
    function = fn
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", None) or type(function).__name__)


__all__ = ["Tool", "ToolDecorator", "ToolHost", "as_tool", "render", "tool", "tool_host"]
