"""`drawloom serve`: a runtime, a server, a socket."""

import asyncio
import ipaddress
import socket

import uvicorn

from drawloom.errors import ConfigError
from drawloom.runtime.cli import show
from drawloom.runtime.runtime import Runtime
from drawloom.runtime.server.app import Server


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any. Raises `ConfigError` when there can be none."""
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


async def serve(
    runtime: Runtime, listener: socket.socket, *, name: str, reasoning: bool, always_usage: bool
) -> None:
    """Until interrupted; then what runs ends, and everything is released."""
    host, port = listener.getsockname()[:2]
    async with runtime:
        server = Server(runtime, name=name, reasoning=reasoning, always_usage=always_usage)
        config = uvicorn.Config(
            server.app, log_level="warning", access_log=False, timeout_graceful_shutdown=2,
            lifespan="off",
        )  # fmt: skip
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        show.note(f"{server.served.model} at {where} (no key is asked for)")
        if not is_loopback(host):
            show.note("everybody who reaches this address can use it: there is no authentication")
        try:
            await uvicorn.Server(config).serve(sockets=[listener])
        except asyncio.CancelledError:
            pass
        finally:
            await server.close()


__all__ = ["bind", "is_loopback", "serve"]
