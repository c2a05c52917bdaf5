"""What a tool may do in its environment, made of the few things that every environment can."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from drawloom.environments import Command, ExecResult, ServiceState
from drawloom.errors import SandboxError
from drawloom.sandbox.api import transfer
from drawloom.sandbox.api.output_stream import Stream
from drawloom.sandbox.api.transfer import PIECE


class Verbs(ABC):
    """Half of a `Sandbox`: everything that is made of commands and pieces of files."""

    @abstractmethod
    async def exec(
        self,
        *command: Command,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult: ...

    @abstractmethod
    async def launch(self, key: str, *command: Command) -> None: ...

    @abstractmethod
    async def peek(self, key: str) -> ServiceState | None: ...

    @abstractmethod
    async def cancel(self, key: str) -> None: ...

    @abstractmethod
    async def ack(self, key: str) -> None: ...

    @abstractmethod
    async def append(self, path: str, data: bytes, *, whole: bool = False) -> None: ...

    @abstractmethod
    async def piece(self, path: str, offset: int) -> tuple[bytes, int]: ...

    async def sh(self, *command: Command, timeout: float | None = None) -> ExecResult:
        return await self.exec(*command, timeout=timeout)

    def stream(self, *command: Command, stdin: bytes = b"", timeout: float | None = None) -> Stream:
        return Stream(
            lambda heard: self.exec(*command, stdin=stdin, timeout=timeout, on_output=heard)
        )

    async def start(self, name: str, *command: Command) -> "Background":
        service = self.service(name)
        await self.launch(service.key, *command)
        return service

    def service(self, name: str) -> "Background":
        if not name.isidentifier() or len(name) > 40:
            raise SandboxError(f"{name!r} is no name for a background process: an identifier")
        return Background(self, name)

    async def upload(self, local: Path, path: str) -> None:
        await transfer.upload(self, local, path)

    async def download(self, path: str, local: Path, *, limit: int = 1 << 30) -> None:
        await transfer.download(self, path, local, limit)


class Background:
    """Implements `Service`: the helper knows the process by a key, whoever asks and whenever."""

    def __init__(self, box: Verbs, name: str) -> None:
        self._box, self.name = box, name
        self.key = f"service-{name}"

    async def state(self) -> ServiceState:
        found = await self._box.peek(self.key)
        if found is None:
            raise SandboxError(f"there is no background process {self.name!r}: start it")
        return found

    async def stop(self) -> ServiceState:
        state = await self.state()
        if state.running:
            await self._box.cancel(self.key)
            while (state := await self.state()).running:
                pass  # it was killed before this was asked; its end is told in a moment
        await self._box.ack(self.key)
        return state


__all__ = ["PIECE", "Background", "Verbs"]
