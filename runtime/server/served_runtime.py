"""Seam towards the runtime that a server answers for."""

from types import TracebackType
from typing import Any, Protocol

from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.execution.agent import Agent
from drawloom.runtime.execution.program import Program
from drawloom.tools.chat_template import ChatTemplate


class StartedProgram(Protocol):
    """Hold a program that was started."""

    async def result(self) -> Any:
        """Return what its agent returns, or raise what that raises."""
        ...


class ServedRuntime(Protocol):
    """Run the programs behind a server; `drawloom.Runtime` is one.

    A runtime opens the gateway of its environments, which is a server. So a server knows its
    runtime by this protocol only, and imports nothing of `runtime/sdk`.
    """

    @property
    def dispatcher(self) -> Dispatcher:
        """Return the dispatcher of the open runtime. Raises `ConfigError` when it is closed."""
        ...

    @property
    def template(self) -> ChatTemplate:
        """Return the chat template of the model. Raises `ConfigError` when there is none."""
        ...

    def running(self, program: str) -> Program | None:
        """Return the program of this id that runs here now."""
        ...

    async def start(self, agent: Agent[[], None]) -> StartedProgram:
        """Start a program of an agent without arguments."""
        ...

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


__all__ = ["ServedRuntime", "StartedProgram"]
