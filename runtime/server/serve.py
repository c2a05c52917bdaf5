"""Process of `drawloom serve`: runtime, HTTP server, signals and graceful shutdown."""

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from drawloom.engine.api.engine import EngineInfo
from drawloom.errors import ConfigError, EngineClosed
from drawloom.runtime.console import output
from drawloom.runtime.server.access import Access, Guard
from drawloom.runtime.server.app import Server
from drawloom.runtime.server.served_runtime import ServedRuntime

_HEADER_SECONDS = 20.0
_MAX_CONNECTIONS = 4096
_CHECK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Configure the server of `drawloom serve`.

    Attributes:
        name: the model's name for clients.
        reasoning: the model's answers begin with reasoning.
        trust_priority: use the priority that a request asks for.
        drain: seconds for running requests after SIGTERM or SIGINT.
        access: which requests are accepted.
    """

    name: str = ""
    reasoning: bool = False
    trust_priority: bool = False
    drain: float = 30.0
    access: Access = field(default_factory=Access)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: the address.
        port: the port; 0 takes any free one.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: a port is between 0 (any free one) and 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named as TCP, or asyncio leaves Nagle's algorithm on and small answers wait 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; --port 0") from None
    listener.listen(1024)
    return listener


class _Protocol(HttpToolsProtocol):
    """Close connections whose request headers do not arrive (uvicorn's HTTP/1.1 protocol)."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(_HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Web(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # uvicorn would end the process by the signal; `serve` shuts down gracefully


@contextlib.asynccontextmanager
async def listening(server: Server, listener: socket.socket, access: Access) -> AsyncIterator[None]:
    """Answer requests on a socket until the block is left; then close the socket.

    Args:
        server: the application.
        listener: a listening socket.
        access: which requests are accepted.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    config = uvicorn.Config(
        Guard(server.app, access),
        http=_Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        limit_concurrency=min(_MAX_CONNECTIONS, files // 2),
    )
    web = _Web(config)
    task = asyncio.create_task(web.serve(sockets=[listener]))
    try:
        yield
    finally:
        web.should_exit = True
        await task
        listener.close()


async def serve(runtime: ServedRuntime, listener: socket.socket, options: ServeOptions) -> int:
    """Serve until a signal arrives or the engine fails for good.

    On SIGTERM and SIGINT new requests are refused with 503, and so are requests that still wait for
    the scheduler, since another server can take them. Running requests may go on for
    `options.drain` seconds; the rest ends with an error then, or at a second signal.

    Returns:
        The exit code: 0 after SIGTERM, 130 after SIGINT.

    Raises:
        EngineClosed: the engine failed and could not be restarted.
    """
    async with runtime:
        server = Server(
            runtime,
            name=options.name,
            reasoning=options.reasoning,
            trust_priority=options.trust_priority,
        )
        with _signals(server) as received:
            async with listening(server, listener, options.access):
                _announce(server, listener, options.access)
                failed = asyncio.create_task(_engine_failure(server))
                try:
                    ends: tuple[asyncio.Future[Any], ...] = (failed, received)
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                    if not received.done():
                        raise failed.result()
                    await _drain(server, options.drain)
                finally:
                    failed.cancel()
                    await asyncio.gather(failed, return_exceptions=True)
            await server.close()
            return 0 if received.result() == signal.SIGTERM else 130


async def _drain(server: Server, seconds: float) -> None:
    if server.drain.running:
        output.note(
            f"{server.drain.running} requests may go on for {seconds:g} s; "
            "a second signal ends them now"
        )
    if await server.stop(seconds):
        output.note("stopped; everything was released")
    else:
        output.note("stopped; requests that still ran ended with an error, everything was released")


@contextlib.contextmanager
def _signals(server: Server) -> "Iterator[asyncio.Future[signal.Signals]]":
    """Catch SIGTERM and SIGINT: the first sets the future, a second one ends the drain."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[signal.Signals] = loop.create_future()

    def caught(number: signal.Signals) -> None:
        if received.done():
            server.drain.cut.set()
        else:
            received.set_result(number)

    handled = (signal.SIGTERM, signal.SIGINT)
    for number in handled:
        loop.add_signal_handler(number, caught, number)
    try:
        yield received
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


async def _engine_failure(server: Server) -> EngineClosed:
    """Wait until the engine has failed for good; a supervisor can then restart the server."""
    while True:
        await asyncio.sleep(_CHECK_SECONDS)
        try:
            await server.dispatcher.engine.stats()
        except EngineClosed as error:
            return error


def describe(info: EngineInfo, policy: str) -> list[str]:
    """Return two lines that describe an engine's configuration and limits."""
    computes = [info.device]
    if info.threads:
        computes.append(f"{info.threads} thread{'s' if info.threads > 1 else ''}")
    if info.dtype:
        computes += [info.dtype, f"{info.weights} weights"]
    room = [f"KV memory {info.kv_tokens:,} tokens", f"host memory {info.host_tokens:,} tokens"]
    if info.max_sequences:
        room.append(f"a step {info.max_sequences:,} sequences, {info.max_batch_tokens:,} tokens")
    return [f"engine: {', '.join(computes)}; policy {policy}", f"  at most: {'; '.join(room)}"]


def _announce(server: Server, listener: socket.socket, access: Access) -> None:
    """Print the engine's limits and how to use the server."""
    host, port = listener.getsockname()[:2]
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"
    for line in describe(server.dispatcher.engine.info, server.dispatcher.scheduler.policy.name):
        output.note(line)
    key = "an API key is required" if access.keys else "no API key"
    output.note(f"{server.context.model} at {url}/v1 ({key})")
    shown = "$DRAWLOOM_API_KEY" if access.keys else "none"
    output.note(f"  any OpenAI client: export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={shown}")
    output.note(f"  its programs: drawloom ps --server {url}; its metrics: {url}/metrics")


__all__ = ["ServeOptions", "bind", "describe", "listening", "serve"]
