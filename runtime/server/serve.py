"""`drawloom serve`: a runtime, a server, a socket, and an orderly end."""

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
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.runtime.server.access import Access, Guard
from drawloom.runtime.server.app import Server

_HEADER_SECONDS = 20.0
_MOST_CONNECTIONS = 4096
_CHECK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Choices of `drawloom serve` about the server alone.

    Attributes:
        name: how the model is called on the wire.
        drain: seconds for which running requests may go on after SIGTERM or SIGINT.
    """

    name: str = ""
    reasoning: bool = False
    trust_priority: bool = False
    drain: float = 30.0
    access: Access = field(default_factory=Access)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any. Raises `ConfigError` when there can be none."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: a port is between 0 (any that is free) and 65535")
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
    """uvicorn's HTTP/1.1, which closes a connection whose request headers do not arrive."""

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
        yield  # uvicorn ends the process by the signal itself; `serve` ends in order


@contextlib.asynccontextmanager
async def listening(server: Server, listener: socket.socket, access: Access) -> AsyncIterator[None]:
    """Answer requests on a socket, which is closed at the end. Raises what uvicorn raises."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    config = uvicorn.Config(
        Guard(server.app, access), http=_Protocol, ws="none", log_level="warning",
        access_log=False, lifespan="off", proxy_headers=False, server_header=False,
        timeout_graceful_shutdown=2, limit_concurrency=min(_MOST_CONNECTIONS, files // 2),
    )  # fmt: skip
    web = _Web(config)
    task = asyncio.create_task(web.serve(sockets=[listener]))
    try:
        yield
    finally:
        web.should_exit = True
        await task
        listener.close()


async def serve(runtime: Runtime, listener: socket.socket, options: ServeOptions) -> int:
    """Serve until a signal, or until the engine is gone for good.

    On SIGTERM and SIGINT new requests are refused with 503, and so are those that still wait for
    the scheduler: another server has room for them. What runs goes on for `options.drain` seconds;
    what is left then, or at a second signal, ends with an error.

    Returns:
        The exit code: 0 after SIGTERM, 130 after SIGINT.

    Raises:
        EngineClosed: the engine failed and could not be started again.
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
            "the same signal again ends them now"
        )
    if await server.stop(seconds):
        output.note("stopped; everything was released")
    else:
        output.note("stopped; what still ran was ended with an error, everything was released")


@contextlib.contextmanager
def _signals(server: Server) -> "Iterator[asyncio.Future[signal.Signals]]":
    """Catch SIGTERM and SIGINT: the first is the future's result, a second ends the drain."""
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
    """Wait until the engine is gone for good; a supervisor can start the whole server again."""
    while True:
        await asyncio.sleep(_CHECK_SECONDS)
        try:
            await server.dispatcher.engine.stats()
        except EngineClosed as error:
            return error


def describe(info: EngineInfo, policy: str) -> list[str]:
    """Return two lines that say how an engine computes, and what it has room for."""
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
    """Tell whoever started the server how to use it."""
    host, port = listener.getsockname()[:2]
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"
    for line in describe(server.dispatcher.engine.info, server.dispatcher.scheduler.policy.name):
        output.note(line)
    key = "with a key" if access.keys else "no key is asked for"
    output.note(f"{server.context.model} at {url}/v1 ({key})")
    shown = "$DRAWLOOM_API_KEY" if access.keys else "none"
    output.note(f"  any OpenAI client: export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={shown}")
    output.note(f"  its programs: drawloom ps --server {url}; its metrics: {url}/metrics")


__all__ = ["ServeOptions", "bind", "describe", "listening", "serve"]
