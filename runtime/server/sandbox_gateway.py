"""Gateway from environments to the runtime's model, on one Unix socket for each environment.

An agent that runs inside an environment speaks OpenAI's protocol to `OPENAI_BASE_URL`. Its LLM
calls are calls of the program that holds the environment: they are scheduled with it, charged to
its budget, and their KV is released at its end. The socket identifies the program, whatever the
request says.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from drawloom.runtime.server.app import Server
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.served_runtime import ServedRuntime

_NOBODY = 65534
_ALLOWED = frozenset(
    {("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models")}
)


def _is_allowed(method: str, path: str) -> bool:
    """Allow completions and the model's name only: other paths show other programs."""
    return (method, path) in _ALLOWED or (method == "GET" and path.startswith("/v1/models/"))


@dataclass(slots=True, eq=False)
class _ScopedApp:
    """Serve the ASGI app to one environment, as the program that holds it."""

    gateway: "SandboxGateway"
    box: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        caller = self.gateway.caller(self.box)
        if caller is None or not _is_allowed(scope["method"], scope["path"]):
            await _refuse(send)
            return
        await self.gateway.server.app({**scope, "drawloom.caller": caller}, receive, send)


def _restrict_peers(protocol: Any) -> Any:
    """Return a protocol class that accepts this user, root, and the user that tools run as.

    Every user of the host can connect to the socket, so peers are checked by their user id.
    """
    accepted = {0, os.getuid(), _NOBODY}

    class Restricted(protocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            peer = transport.get_extra_info("socket")
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("3i", credentials)[1] not in accepted:
                transport.abort()
                return
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            if self in self.connections:
                super().connection_lost(exc)

    return Restricted


async def _refuse(send: Send) -> None:
    message = "no running program holds this environment, or the path is not offered to it"
    body = json.dumps({"error": {"message": message, "type": "forbidden"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class SandboxGateway:
    """Open and close the sockets of environments; one HTTP server answers on all of them."""

    def __init__(self, runtime: ServedRuntime) -> None:
        self._runtime = runtime
        self.server = Server(runtime)
        self._state = ServerState()
        self._open: dict[str, tuple[asyncio.Server, Path]] = {}

    async def open(self, box: str, path: Path) -> None:
        """Listen for requests of an environment.

        Args:
            box: id of the environment.
            path: the Unix socket to create; an existing file is replaced.
        """
        config = uvicorn.Config(
            _ScopedApp(self, box), log_level="warning", access_log=False, lifespan="off"
        )
        config.load()
        protocol = _restrict_peers(config.http_protocol_class)
        path.unlink(missing_ok=True)
        listening = await asyncio.get_running_loop().create_unix_server(
            lambda: protocol(config=config, server_state=self._state, app_state={}), str(path)
        )
        path.chmod(0o666)
        self._open[box] = (listening, path)

    async def close(self, box: str) -> None:
        """Close the socket of an environment, if it has one."""
        found = self._open.pop(box, None)
        if found is not None:
            found[0].close()
            with contextlib.suppress(OSError):
                found[1].unlink()

    async def close_all(self) -> None:
        """Close all sockets, their connections and the server."""
        for box in list(self._open):
            await self.close(box)
        for connection in list(self._state.connections):
            connection.shutdown()
        await self.server.close()

    def caller(self, box: str) -> Caller | None:
        """Return the program that holds an environment, as a caller; None if none runs."""
        dispatcher = self._runtime.dispatcher
        owner = dispatcher.environments.owner_of(box)
        run = self._runtime.running(owner.program) if owner is not None else None
        if run is None:
            return None
        return self.server.sessions.runtime_caller(run.id, run.agent.tenant, run.account)


__all__ = ["SandboxGateway"]
