"""The model of a runtime, on a Unix socket for each environment that asks for it.

An agent that runs inside an environment speaks OpenAI's wire to `OPENAI_BASE_URL`; its calls are
calls of the program that has the environment: scheduled with it, on its budget, their KV released
at its end. Who asks is known by the socket, whatever the request says of itself.
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

from drawloom.runtime.sdk.runtime import Runtime
from drawloom.runtime.server.app import Server
from drawloom.runtime.server.directory import Caller

_NOBODY = 65534


_OFFERED = frozenset(
    {("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models")}
)


def _offered(method: str, path: str) -> bool:
    """Tell whether code inside an environment may ask for this: a model's answers and its name,
    never anything about programs, which may be another's."""
    return (method, path) in _OFFERED or (method == "GET" and path.startswith("/v1/models/"))


@dataclass(slots=True, eq=False)
class _Inside:
    """The app as one environment sees it."""

    door: "Door"
    box: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        program = self.door.program(self.box)
        if program is None or not _offered(scope["method"], scope["path"]):
            await _refuse(send)
            return
        await self.door.server.app({**scope, "drawloom.inside": program}, receive, send)


def _guarded(protocol: Any) -> Any:
    """The socket can be found by every user of this host; only us, root, and the nobody that tools
    run as, are heard."""
    known = {0, os.getuid(), _NOBODY}

    class Guarded(protocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            asked = transport.get_extra_info("socket")
            about = asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("3i", about)[1] not in known:
                transport.abort()
                return
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            if self in self.connections:
                super().connection_lost(exc)

    return Guarded


async def _refuse(send: Send) -> None:
    words = "this environment belongs to no program that runs, or asks for more than a model"
    body = json.dumps({"error": {"message": words, "type": "forbidden"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Door:
    """Opens and closes these sockets; one server behind all of them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.server = Server(runtime)
        self._state = ServerState()
        self._open: dict[str, tuple[asyncio.Server, Path]] = {}

    async def open(self, box: str, path: Path) -> None:
        """Listen at `path` for environment `box`."""
        config = uvicorn.Config(
            _Inside(self, box), log_level="warning", access_log=False, lifespan="off"
        )
        config.load()
        protocol = _guarded(config.http_protocol_class)
        path.unlink(missing_ok=True)
        listening = await asyncio.get_running_loop().create_unix_server(
            lambda: protocol(config=config, server_state=self._state, app_state={}), str(path)
        )
        path.chmod(0o666)
        self._open[box] = (listening, path)

    async def close(self, box: str) -> None:
        found = self._open.pop(box, None)
        if found is not None:
            found[0].close()
            with contextlib.suppress(OSError):
                found[1].unlink()

    async def close_all(self) -> None:
        for box in list(self._open):
            await self.close(box)
        for connection in list(self._state.connections):
            connection.shutdown()
        await self.server.close()

    def program(self, box: str) -> Caller | None:
        """Return the caller that the program is which has an environment."""
        dispatcher = self._runtime.dispatcher
        holder = dispatcher.environments.holder(box)
        run = self._runtime.running(holder) if holder is not None else None
        if run is None:
            return None
        agent = run.agent
        return self.server.programs.inside(run.id, agent.tenant, run.account)


__all__ = ["Door"]
