"""Operations of an environment that are composed of its primitives."""

from pathlib import Path

from drawloom.environments import Command, ExecResult, ServiceState
from drawloom.errors import SandboxError
from drawloom.sandbox.api import transfer
from drawloom.sandbox.api.output_stream import Stream
from drawloom.sandbox.api.primitives import SandboxPrimitives


class SandboxOperations(SandboxPrimitives):
    """Implement the part of `Sandbox` that needs no more than the primitives."""

    async def sh(self, *command: Command, timeout: float | None = None) -> ExecResult:
        """Run a command; `exec` by a shorter name."""
        return await self.exec(*command, timeout=timeout)

    def stream(self, *command: Command, stdin: bytes = b"", timeout: float | None = None) -> Stream:
        """Return an iterator that runs a command and yields its output."""
        return Stream(
            lambda heard: self.exec(*command, stdin=stdin, timeout=timeout, on_output=heard)
        )

    async def start(self, name: str, *command: Command) -> "Background":
        """Start a command as a named background process."""
        service = self.service(name)
        await self.launch(service.key, *command)
        return service

    def service(self, name: str) -> "Background":
        """Return the handle of a background process, running or not.

        Raises `SandboxError` for a name that is no identifier.
        """
        if not name.isidentifier() or len(name) > 40:
            raise SandboxError(f"{name!r} is no name for a background process: an identifier")
        return Background(self, name)

    async def upload(self, local: Path, path: str) -> None:
        """Copy a file or folder of this host into the environment."""
        await transfer.upload(self, local, path)

    async def download(self, path: str, local: Path, *, limit: int = 1 << 30) -> None:
        """Copy a file or folder of at most `limit` bytes out of the environment."""
        await transfer.download(self, path, local, limit)


class Background:
    """Implement `Service` over the key by which the helper knows a process.

    The key follows from the name, so an owner that lost its memory finds the process again.
    """

    def __init__(self, sandbox: SandboxPrimitives, name: str) -> None:
        self._sandbox, self.name = sandbox, name
        self.key = f"service-{name}"

    async def state(self) -> ServiceState:
        """Return the state of the process. Raises `SandboxError` if it was never started."""
        found = await self._sandbox.peek(self.key)
        if found is None:
            raise SandboxError(f"there is no background process {self.name!r}: start it")
        return found

    async def stop(self) -> ServiceState:
        """Kill the process if it runs; return its last state and free its name."""
        state = await self.state()
        if state.running:
            await self._sandbox.cancel(self.key)
            while (state := await self.state()).running:
                pass  # the kill was sent before this request; the helper reports the end soon
        await self._sandbox.ack(self.key)
        return state


__all__ = ["Background", "SandboxOperations"]
