"""Servers as processes of their own: started on given cores, waited for, and always stopped."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from drawloom.errors import DrawloomError

_POLL = 0.2
_STOP = 20.0  # seconds that a server may take to end by itself
_TAIL, _CAUSES, _WIDTH = 15, 3, 300  # lines of its log that an error shows, and their length


class StartFailed(DrawloomError):
    """Report a server that could not be installed or did not start."""


@dataclass(frozen=True, slots=True)
class Command:
    """Describe how a server is started.

    Args:
        name: what it is called in messages, and its log.
        argv: program and arguments; "{port}" is replaced by the port.
        env: added to the environment.
        cores: the cores that it may compute on; None for all.
        health: path that answers 200 once it can serve.
        wait: seconds that it may take to start.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] | None = None
    health: str = "/health"
    wait: float = 900.0


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def on_cores(cores: frozenset[int] | None) -> Iterator[None]:
    """Keep this thread, and what it starts meanwhile, on `cores`; where that is possible."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.asynccontextmanager
async def running(command: Command, logs: Path) -> AsyncIterator[str]:
    """Start a server, yield its URL once it is healthy, and always stop it.

    Args:
        command: the server.
        logs: folder for what it prints.

    Raises:
        StartFailed: it ended, or did not become healthy in time; with the end of its log.
    """
    logs.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), logs / f"{command.name}-{os.getpid()}.log"
    argv = [part.replace("{port}", str(port)) for part in command.argv]
    with log.open("wb") as out, on_cores(command.cores):
        try:
            process = subprocess.Popen(
                argv,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | dict(command.env),
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(f"{command.name} cannot be started: {error}") from None
    try:
        url = f"http://127.0.0.1:{port}"
        await _healthy(command, process, url, log)
        yield url
    finally:
        stop(process)


async def lines(command: Command, logs: Path) -> AsyncGenerator[str, None]:
    """Run a program to its end and yield the lines that it prints; stderr goes into a log."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{command.name}-{os.getpid()}.log"
    with log.open("wb") as out, on_cores(command.cores):
        process = subprocess.Popen(
            command.argv,
            stdout=subprocess.PIPE,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env=os.environ | dict(command.env),
            start_new_session=True,
            text=True,
        )
    assert process.stdout is not None
    try:
        while line := await asyncio.to_thread(process.stdout.readline):
            yield line
        if process.wait():
            code = process.returncode
            raise StartFailed(f"{command.name} ended with {code}:\n{_tail(log)}")
    finally:
        stop(process)
        process.stdout.close()


async def _healthy(command: Command, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + command.wait
    async with httpx.AsyncClient(timeout=5.0) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(url + command.health)).status_code == 200:
                    return
            code = process.poll()
            if code is not None:
                raise StartFailed(f"{command.name} ended with {code} as it started:\n{_tail(log)}")
            if time.monotonic() > until:
                raise StartFailed(
                    f"{command.name} was not healthy after {command.wait:.0f} s:\n{_tail(log)}"
                )
            await asyncio.sleep(_POLL)


def _tail(log: Path) -> str:
    """Return the end of a log, after the first errors in it: the cause is said first."""
    lines = log.read_text(errors="replace").splitlines()
    before, end = lines[:-_TAIL], lines[-_TAIL:]
    causes = [line for line in before if "Error" in line][:_CAUSES]
    shown = [f"    {line[:_WIDTH]}" for line in [*causes, *end]]
    return "\n".join(shown) or "    it printed nothing"


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process that was started with a session of its own, and all that it has started."""
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP)
    _signal(process, signal.SIGKILL)  # children may outlive it
    process.wait()


def _signal(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


__all__ = ["Command", "StartFailed", "free_port", "lines", "on_cores", "running", "stop"]
