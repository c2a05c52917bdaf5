"""An environment as one tool call sees it."""

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import Callable

from drawloom.environments import Command, ExecResult, ServiceState
from drawloom.errors import SandboxError, StoreError, ToolError, ToolTimeout
from drawloom.runtime.execution.env_progress import Progress
from drawloom.sandbox.api.operations import SandboxOperations
from drawloom.sandbox.api.sandbox import LiveSandbox

_NOT_RUNNABLE = (126, 127)  # the exit codes by which shells and the helper say so


class StepSandbox(SandboxOperations):
    """Present an environment to one tool call (implements `Sandbox`).

    Its commands are numbered, so that a resumed step asks for their results instead of running them
    twice.

    Args:
        box: the environment.
        step: id of the step.
        timeout: seconds of a command without a timeout of its own; None: no limit.
        progress: marks the call before it does what must not be repeated.
    """

    def __init__(
        self, box: LiveSandbox, step: str, timeout: float | None, progress: Progress
    ) -> None:
        self._box, self._timeout, self._name = box, timeout, step
        self._progress = progress
        self._sidecars: dict[str, StepSandbox] = {}
        self._step = hashlib.blake2b(step.encode(), digest_size=12).hexdigest()
        self.keys: list[str] = []

    @property
    def id(self) -> str:
        return self._box.id

    async def exec(
        self,
        *command: Command,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        key = f"{self._step}-{len(self.keys)}"
        self.keys.append(key)
        limit = timeout if timeout is not None else self._timeout
        await self._progress.command(silent=on_output is None)
        try:
            result = await self._box.exec(
                *command, stdin=stdin, timeout=limit, on_output=on_output, key=key
            )
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                with contextlib.suppress(SandboxError):  # then nothing of it runs on
                    await asyncio.shield(self._box.cancel(key))
            with contextlib.suppress(StoreError):
                await asyncio.shield(self._progress.act())
            raise
        await self._progress.act()
        return _checked(result, limit)

    def sidecar(self, name: str) -> "StepSandbox":
        if name not in self._sidecars:
            other = self._box.sidecar(name)
            self._sidecars[name] = StepSandbox(
                other, f"{self._name}@{name}", self._timeout, self._progress
            )
        return self._sidecars[name]

    async def launch(self, key: str, *command: Command) -> None:
        await self._progress.act()
        await self._box.launch(key, *command)

    async def peek(self, key: str) -> ServiceState | None:
        await self._progress.act()
        return await self._box.peek(key)

    async def cancel(self, key: str) -> None:
        await self._progress.act()
        await self._box.cancel(key)

    async def ack(self, key: str) -> None:
        await self._progress.act()
        await self._box.ack(key)

    async def write(self, path: str, data: bytes) -> None:
        await self._progress.act()
        await self._box.write(path, data)

    async def read(self, path: str, *, limit: int = 16 << 20) -> bytes:
        await self._progress.act()
        return await self._box.read(path, limit=limit)

    async def append(self, path: str, data: bytes, *, whole: bool = False) -> None:
        await self._progress.act()
        await self._box.append(path, data, whole=whole)

    async def piece(self, path: str, offset: int) -> tuple[bytes, int]:
        await self._progress.act()
        return await self._box.piece(path, offset)

    async def end_commands(self) -> None:
        """End the commands that an earlier owner of this call started here."""
        for number in itertools.count():
            key = f"{self._step}-{number}"
            state = await self._box.peek(key)
            if state is None:
                return
            if state.running:
                await self._box.cancel(key)
            while state is not None and state.running:
                state = await self._box.peek(key)
            await self._box.ack(key)

    async def forget(self) -> None:
        """Drop the kept results: they are in the store now."""
        if self._box.alive:
            for key in self.keys:
                await self._box.ack(key)
        for other in self._sidecars.values():
            await other.forget()


def _checked(result: ExecResult, limit: float | None) -> ExecResult:
    """Return a command's result.

    A tool that never looks at `code` would answer with an empty text, hence the errors.

    Raises:
        ToolTimeout: it was stopped.
        ToolError: it could not be run.
    """
    text = result.text.strip()
    if result.timed_out:
        raise ToolTimeout(f"the command timed out after {limit or 0:g} s" + _after(text))
    if result.code in _NOT_RUNNABLE:
        raise ToolError(f"the command could not be run (exit {result.code})" + _after(text))
    return result


def _after(text: str) -> str:
    return f"; it printed:\n{text}" if text else ""


__all__ = ["StepSandbox"]
