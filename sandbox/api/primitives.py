"""Primitives that every environment offers; its other operations are composed of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from drawloom.environments import Command, ExecResult, ServiceState

PIECE = 1 << 20
"""Most bytes of a file that one call transfers."""


class SandboxPrimitives(ABC):
    """Define the calls that a helper answers by itself."""

    @abstractmethod
    async def exec(
        self,
        *command: Command,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command to its end. See `Sandbox.exec`."""

    @abstractmethod
    async def launch(self, key: str, *command: Command) -> None:
        """Start a command under a key without waiting for its end."""

    @abstractmethod
    async def peek(self, key: str) -> ServiceState | None:
        """Return the state of a command by its key; None if the helper has none."""

    @abstractmethod
    async def cancel(self, key: str) -> None:
        """Kill the command of a key."""

    @abstractmethod
    async def ack(self, key: str) -> None:
        """Let the helper forget the result of a key."""

    @abstractmethod
    async def append(self, path: str, data: bytes, *, whole: bool = False) -> None:
        """Append to a file, or replace its content with `data` if `whole`."""

    @abstractmethod
    async def piece(self, path: str, offset: int) -> tuple[bytes, int]:
        """Read at most `PIECE` bytes from an offset; return them and the file's size."""


__all__ = ["PIECE", "SandboxPrimitives"]
