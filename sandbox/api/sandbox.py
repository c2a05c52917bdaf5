"""Live environments, whichever provider made them."""

import asyncio
import itertools
import os
from collections.abc import Callable

from drawloom.environments import Command, Env, ExecResult, ServiceState
from drawloom.errors import SandboxDied, SandboxError
from drawloom.sandbox.api.commands import argv_of, fit_argv
from drawloom.sandbox.api.operations import SandboxOperations
from drawloom.sandbox.api.primitives import PIECE
from drawloom.sandbox.helper.protocol import Reply, Wire


class LiveSandbox(SandboxOperations):
    """Implement `Sandbox` over the wire to an environment's helper.

    `exec` takes a `key`: the helper keeps the result under it until `ack`, so an owner that lost
    its memory asks again and nothing runs twice.

    Attributes:
        touched: something may have changed its files since the setup.
        setup_seconds: how long the setup took.
        sidecars: the containers that share its loopback, by name.
    """

    def __init__(self, id: str, env: Env, wire: Wire) -> None:
        self._id, self.env, self._wire = id, env, wire
        self._numbers = itertools.count()
        self.touched = False
        self.setup_seconds = 0.0
        self.sidecars: dict[str, LiveSandbox] = {}

    @property
    def id(self) -> str:
        """Return the id that the provider knows it by."""
        return self._id

    @property
    def wire(self) -> Wire:
        """Return the wire to the helper."""
        return self._wire

    @property
    def alive(self) -> bool:
        """Return False once the wire to the helper has ended."""
        return self._wire.alive

    @property
    def isolation(self) -> int:
        """Return 0 for no isolation, 1 for a part or a container, 2 for all; see `isolate.c`."""
        return self._wire.isolation

    @property
    def lacking(self) -> list[str]:
        """Return the parts of the isolation that the kernel refused a local process, and why."""
        return self._wire.lacking.splitlines()

    async def exec(
        self,
        *command: Command,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
        key: str | None = None,
    ) -> ExecResult:
        """Run a command to its end. See `Sandbox.exec` for all arguments but `key`."""
        name = key or self._unique("x")
        argv, given = fit_argv(argv_of(command), stdin)
        head, args = self._command(name, argv, given, timeout, stream=on_output is not None)
        if key is not None and (known := await self._result(key, timeout)) is not None:
            return known
        try:
            heard = on_output and _at_most(self.env.output_cap, on_output)
            reply = await self._wire.call(head, args, given, timeout=timeout, on_part=heard)
        except asyncio.CancelledError:
            if key is None and self.alive:
                await asyncio.shield(self._wire.tell(f"drop {name}"))
            raise
        result = _result(reply, argv[0])
        if key is None:
            await self.ack(name)
        return result

    def _command(
        self, name: str, argv: tuple[str, ...], stdin: bytes, timeout: float | None, *, stream: bool
    ) -> tuple[str, bytes]:
        self.touched = True
        args = b"\0".join(a.encode() for a in argv) + b"\0"
        limit = 0 if timeout is None else max(1, int(timeout * 1000))
        head = f"exec {name} {limit} {self.env.output_cap} {len(args)} {len(stdin)} {int(stream)}"
        return head, args

    async def _result(self, key: str, timeout: float | None) -> ExecResult | None:
        """Wait for an exec that an earlier owner started; return None if there is none."""
        reply = await self._wire.call(f"result {key}", timeout=timeout)
        return None if reply.kind == "missing" else _result(reply, key)

    async def ack(self, key: str) -> None:
        """Let the helper forget a result: it is safe elsewhere."""
        await self._wire.tell(f"ack {key}")

    async def cancel(self, key: str) -> None:
        """Kill a running exec; its result counts as timed out."""
        await self._wire.tell(f"cancel {key}")

    async def launch(self, key: str, *command: Command) -> None:
        """Run a command without waiting for it. Raises `SandboxError` when it cannot start."""
        argv, given = fit_argv(argv_of(command), b"")
        head, args = self._command(key, argv, given, None, stream=False)
        if await self.peek(key) is not None:
            raise SandboxError(f"{key} is there already: stop it first")
        await self._wire.tell(head, args, given)
        if await self.peek(key) is None:
            raise SandboxError(f"{argv[0]} could not be started: too many processes")

    async def peek(self, key: str) -> ServiceState | None:
        """Return the state of a command; None unless it runs or is not acknowledged yet."""
        name = key.encode()
        head = f"peek {self._unique('p')} {len(name)}"
        reply = await self._wire.call(head, name, timeout=10.0)
        if reply.kind == "missing":
            return None
        running, code, total, micros = reply.numbers
        return ServiceState(bool(running), code, reply.data, total, micros / 1e6)

    async def write(self, path: str, data: bytes) -> None:
        """Write a file, making its folders. Raises `SandboxError`."""
        for at in range(0, max(1, len(data)), PIECE):
            await self.append(path, data[at : at + PIECE], whole=at == 0)

    def sidecar(self, name: str) -> "LiveSandbox":
        """Return a sidecar by its name. Raises `SandboxError` if there is none of this name."""
        if name not in self.sidecars:
            known = ", ".join(self.sidecars) or "none"
            raise SandboxError(f"{self.id} has no sidecar {name!r}; there is {known}")
        return self.sidecars[name]

    async def append(self, path: str, data: bytes, *, whole: bool = False) -> None:
        """Append to a file, or replace its content with `data` if `whole`."""
        self.touched = True
        name = path.encode()
        head = f"write {self._unique('w')} {len(name)} {len(data)} {int(not whole)}"
        self._check(await self._wire.call(head, name, data, timeout=60.0), path)

    async def read(self, path: str, *, limit: int = 16 << 20) -> bytes:
        """Read a file of at most `limit` bytes. Raises `SandboxError`."""
        name = path.encode()
        head = f"read {self._unique('r')} {limit} {len(name)}"
        return self._check(await self._wire.call(head, name, timeout=60.0), path).data

    async def piece(self, path: str, offset: int) -> tuple[bytes, int]:
        """Read at most `PIECE` bytes from an offset; return them and the file's size."""
        name = path.encode()
        head = f"piece {self._unique('r')} {PIECE} {len(name)} {offset}"
        reply = self._check(await self._wire.call(head, name, timeout=60.0), path)
        return reply.data, reply.numbers[2]

    async def ping(self) -> int:
        """Show the helper that its owner lives; return how many other processes run there.

        Raises:
            SandboxDied: it does not answer.
        """
        reply = await self._wire.call(f"hello {self._unique('p')}", timeout=10.0)
        return reply.numbers[1]

    def lose(self, reason: str) -> None:
        """Mark the environment as dead: all requests raise `SandboxDied` with the reason."""
        self._wire.end(reason)

    async def detach(self) -> None:
        """Let go of the environment without removing it: another owner may adopt it."""
        self._wire.end("it was let go")

    async def destroy(self) -> None:
        """Remove the environment with its files; harmless if it is gone."""
        self._wire.end("it was destroyed")

    def _unique(self, kind: str) -> str:
        return f"{kind}{os.getpid()}-{next(self._numbers)}"

    @staticmethod
    def _check(reply: Reply, path: str) -> Reply:
        if reply.kind == "error":
            raise SandboxError(f"{path}: {reply.data.decode(errors='replace')}")
        return reply


def _result(reply: Reply, what: str) -> ExecResult:
    if reply.kind == "error":
        raise SandboxError(f"{what} could not be started: {reply.data.decode(errors='replace')}")
    if reply.kind != "exit":
        raise SandboxDied(f"{what}: unexpected answer {reply.kind!r}")
    code, timed_out, total, micros = reply.numbers
    return ExecResult(code, reply.data, total, micros / 1e6, bool(timed_out))


def _at_most(limit: int, heard: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Return a callback that drops output beyond `limit` bytes: no helper of ours sends it."""
    left = limit

    def hear(data: bytes) -> None:
        nonlocal left
        if data := data[:left]:
            left -= len(data)
            heard(data)

    return hear


__all__ = ["LiveSandbox"]
