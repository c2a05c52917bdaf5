"""The owner's side of the helper protocol (`helper.c`), over any pair of byte streams."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from drawloom.errors import SandboxDied, SandboxError

_HELLO_SECONDS = 20.0
_GRACE_SECONDS = 15.0
_LONGEST_HEAD = 512
_LARGEST = 256 << 20  # as the helper: no file and no output is larger


@dataclass(frozen=True, slots=True)
class Reply:
    """Hold one answer of a helper: its kind, four numbers that depend on it, a payload."""

    kind: str
    numbers: tuple[int, int, int, int]
    data: bytes


class Wire:
    """Send requests to one helper and match its answers.

    Args:
        name: the environment's id, for messages.
        write: sends bytes to the helper; what comes back goes into `feed`.

    Attributes:
        isolation: 0 none, 1 partly (or a container's), 2 complete; see `isolate.c`.
        lacking: parts of the isolation that a local process does not have, one a line.
    """

    def __init__(self, name: str, write: Callable[[bytes], Awaitable[None]]) -> None:
        self.name = name
        self.isolation = 0
        self.lacking = ""
        self._write = write
        self._lock = asyncio.Lock()
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._parts: dict[str, Callable[[bytes], None]] = {}
        self._buffer = bytearray()
        self._dead: str | None = None

    @property
    def alive(self) -> bool:
        return self._dead is None

    async def hello(self) -> None:
        """Greet the helper, also after an owner that died in the middle of a request."""
        reply = await self.call(f"hello {secrets.token_hex(8)}", timeout=_HELLO_SECONDS, lead=b"\n")
        self.isolation = reply.numbers[0]
        self.lacking = reply.data.decode(errors="replace")

    async def call(
        self,
        head: str,
        *payloads: bytes,
        timeout: float | None = None,
        lead: bytes = b"",
        on_part: Callable[[bytes], None] | None = None,
    ) -> Reply:
        """Send one request and wait for its answer.

        Args:
            head: the request's line: its verb, its name, its numbers.
            timeout: seconds that the helper gives the request; waiting ends some time after that.
            lead: bytes to send before the line.
            on_part: called with output that the helper sends before the answer.

        Raises:
            SandboxDied: the helper is gone, or silent past its time.
        """
        name = head.split()[1]
        future = self._expect(name)
        if on_part is not None:
            self._parts[name] = on_part
        try:
            await self.tell(head, *payloads, lead=lead)
        except SandboxDied:
            self._forget(name)
            raise
        return await self._answer(name, future, timeout)

    async def _answer(
        self, name: str, future: "asyncio.Future[Reply]", timeout: float | None
    ) -> Reply:
        try:
            limit = None if timeout is None else timeout + _GRACE_SECONDS
            return await asyncio.wait_for(future, limit)
        except TimeoutError:
            raise SandboxDied(f"{self.name}: its helper does not answer") from None
        finally:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._waiting.pop(name, None)
        self._parts.pop(name, None)

    async def tell(self, head: str, *payloads: bytes, lead: bytes = b"") -> None:
        """Send a request that has no answer. Raises `SandboxDied`."""
        if self._dead is not None:
            raise SandboxDied(f"{self.name} is gone: {self._dead}")
        try:
            async with self._lock:
                await self._write(b"".join((lead, head.encode(), b"\n", *payloads)))
        except (OSError, RuntimeError) as error:
            self.end(str(error))
            raise SandboxDied(f"{self.name} is gone: {error}") from None

    def _expect(self, name: str) -> asyncio.Future[Reply]:
        if name in self._waiting:
            raise SandboxError(f"{self.name}: request {name} is already in flight")
        future = asyncio.get_running_loop().create_future()
        self._waiting[name] = future
        return future

    def feed(self, data: bytes) -> None:
        """Take bytes from the helper, cut anywhere.

        Bytes that no helper of ours sends end the wire: a command may have taken it over.
        """
        if self._dead is not None:
            return
        self._buffer += data
        try:
            self._hear()
        except ValueError:
            self._buffer.clear()
            self.end("its helper broke the protocol")

    def _hear(self) -> None:
        while (found := self._take()) is not None:
            name, reply = found
            if reply.kind == "part":
                self._parts.get(name, _unheard)(reply.data)
                continue
            future = self._waiting.get(name)
            if future is not None and not future.done():
                future.set_result(reply)

    def _take(self) -> tuple[str, Reply] | None:
        buffer = self._buffer
        start = buffer.find(b"=DL ")
        if start < 0:
            del buffer[: max(0, len(buffer) - 3)]
            return None
        end = buffer.find(b"\n", start, start + _LONGEST_HEAD)
        if end < 0:
            if len(buffer) - start >= _LONGEST_HEAD:
                raise ValueError
            return None
        _, name, kind, *numbers = buffer[start:end].decode(errors="replace").split(" ")
        a, b, c, d, size = (int(n) for n in numbers)
        if not 0 <= size <= _LARGEST:
            raise ValueError
        if len(buffer) < end + 1 + size:
            return None
        data = bytes(buffer[end + 1 : end + 1 + size])
        del buffer[: end + 1 + size]
        return name, Reply(kind, (a, b, c, d), data)

    def end(self, reason: str) -> None:
        """Close the wire: all requests in flight, and later ones, raise `SandboxDied`."""
        self._dead = self._dead or reason
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(SandboxDied(f"{self.name} is gone: {reason}"))


def _unheard(data: bytes) -> None: ...


__all__ = ["Reply", "Wire"]
