"""Speak to the helper in a Docker container through its attached stream."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable

from drawloom.environments import Env
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.helper.protocol import Wire


class DockerSandbox(LiveSandbox):
    """Drive a container through the stream to the helper in it.

    Args:
        sock: attached to the container's stdin and stdout.
        remove: removes an environment's container and those of its sidecars, by its id.
    """

    def __init__(
        self, id: str, env: Env, sock: socket.socket, remove: Callable[[str], Awaitable[None]]
    ) -> None:
        super().__init__(id, env, Wire(id, self._send))
        self._sock, self._remove = sock, remove
        self._reader = asyncio.create_task(self._read())

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def _read(self) -> None:
        """Undo Docker's framing: 8 bytes, the stream's number and a length, before each piece."""
        loop, buffer = asyncio.get_running_loop(), bytearray()
        try:
            while data := await loop.sock_recv(self._sock, 1 << 17):
                buffer += data
                while len(buffer) >= 8:
                    (size,) = struct.unpack_from(">I", buffer, 4)
                    if len(buffer) < 8 + size:
                        break
                    self._wire.feed(bytes(buffer[8 : 8 + size]))
                    del buffer[: 8 + size]
        except OSError as error:
            self._wire.end(str(error))
        self._wire.end("its container ended")

    async def ping(self) -> int:
        """Show the helpers of the environment and its sidecars that their owner lives."""
        for other in self.sidecars.values():
            await other.ping()
        return await super().ping()

    async def detach(self) -> None:
        """Close the stream without ending the container."""
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._wire.end("it was let go")
        self._sock.close()

    async def destroy(self) -> None:
        """Remove the container and its sidecars."""
        await super().destroy()
        await self.detach()
        await self._remove(self.id)


__all__ = ["DockerSandbox"]
