"""A connection to an MCP server of this host, made again when the server has died."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from time import monotonic
from typing import Any

from drawloom.errors import ConfigError, ToolError, ToolTimeout
from drawloom.tools.mcp_listing import usable_tools
from drawloom.tools.results import describe_error

log = logging.getLogger("drawloom.tools")
_CLOSING_SECONDS = 10.0
_LONGEST_PAUSE = 60.0


class HostServer:
    """Talk to a server by the official SDK.

    A server that died is started again by the next call. While it dies before its first answer,
    starts are delayed by pauses that double up to a minute.

    Args:
        server: a command and its arguments, or a URL.
        words: the same, for messages.
        variables: environment variables of the command.
        timeout: most seconds that it may take to connect.
    """

    def __init__(
        self,
        server: str | tuple[str, ...],
        words: str,
        variables: Mapping[str, str] | None,
        timeout: float,
    ) -> None:
        self._server, self._words, self._timeout = server, words, timeout
        self._variables = dict(variables) if variables is not None else None
        self._client: Any = None
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._turn = asyncio.Lock()
        self._deaths = 0
        self._next_start = 0.0
        self._open = False

    async def open(self) -> list[dict[str, Any]]:
        """Connect, and return the tools of the server. Raises `ToolError`, `ConfigError`."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._connect()
                found = await self._tools()
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                limit = f"for {self._timeout:g} s"
                raise ToolError(f"MCP server {self._words} does not answer {limit}") from None
            raise
        self._open = True
        return found

    async def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return a call's result. Raises `ToolError`."""
        if not self._open:
            raise ToolError(f"MCP server {self._words} is not open")
        async with self._turn:
            if self._ended:
                await self._again()
            client = self._client
        try:
            result = await client.call_tool(tool, arguments)
        except Exception as error:  # whatever a stranger's program does
            if isinstance(self._server, str):  # its stream does not end with the server
                self._ended = True
            words = "has ended" if self._ended else "failed"
            problem = describe_error(error)
            raise ToolError(f"MCP server {self._words} {words}: {problem}") from None
        self._deaths = 0
        found: dict[str, Any] = result.model_dump(by_alias=True, exclude_none=True)
        return found

    async def close(self) -> None:
        """End the connection, and the server if it is a command."""
        self._open = False
        await self._disconnect()

    async def _disconnect(self) -> None:
        connected, self._client = self._client is not None, None
        task, self._task = self._task, None
        if task is None:
            return
        self._stop.set()
        try:
            if connected:
                await asyncio.wait([task], timeout=_CLOSING_SECONDS)
        finally:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _again(self) -> None:
        wait = self._next_start - monotonic()
        if wait > 0:
            raise ToolError(f"MCP server {self._words} has ended; it is started in {wait:.0f} s")
        pause = min(_LONGEST_PAUSE, 2.0**self._deaths) if self._deaths else 0.0
        self._deaths += 1
        self._next_start = monotonic() + pause
        log.warning("MCP server %s has ended: it is started again", self._words)
        try:
            async with asyncio.timeout(self._timeout):
                await self._disconnect()
                await self._connect()
        except TimeoutError:
            raise ToolTimeout(f"MCP server {self._words} does not start again") from None

    async def _connect(self) -> None:
        """Start the task that the connection lives in: it must begin and end in the same one."""
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._ended = True
        self._task = asyncio.create_task(self._dispatcher(ready, self._stop))
        self._client = await ready
        self._ended = False

    async def _dispatcher(self, ready: "asyncio.Future[Any]", stop: asyncio.Event) -> None:
        try:
            async with _client(self._server, self._variables, self._words, self._end) as client:
                if not ready.done():
                    ready.set_result(client)
                await stop.wait()
        except Exception as error:
            known = isinstance(error, ConfigError)
            words = f"MCP server {self._words} does not answer: {describe_error(error)}"
            if not ready.done():
                ready.set_exception(error if known else ToolError(words))
        finally:
            if not ready.done():
                ready.set_exception(ToolError(f"MCP server {self._words} was not started"))
                ready.exception()  # nobody may be waiting any more

    def _end(self) -> None:
        self._ended = True

    async def _tools(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            try:
                page = await self._client.list_tools(cursor=cursor)
            except Exception as error:
                problem = describe_error(error)
                raise ToolError(
                    f"MCP server {self._words} does not list its tools: {problem}"
                ) from None
            found += [tool.model_dump(by_alias=True, exclude_none=True) for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                return found


@contextlib.asynccontextmanager
async def _client(
    server: str | tuple[str, ...], variables: dict[str, str] | None, words: str, ended: Any
) -> AsyncIterator[Any]:
    try:
        from mcp import Client, StdioServerParameters, stdio_client
        from mcp.client.streamable_http import streamable_http_client
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'drawloom[mcp]'") from None
    if isinstance(server, str):
        inner: Any = streamable_http_client(server)
    else:
        arguments = list(server[1:])
        inner = stdio_client(
            StdioServerParameters(command=server[0], args=arguments, env=variables)
        )
    async with Client(_filtered(inner, words, ended)) as client:
        yield client


@contextlib.asynccontextmanager
async def _filtered(inner: Any, words: str, ended: Any) -> AsyncIterator[Any]:
    """Filter a transport: drop tools for which the SDK would refuse the whole list.

    It also sets `ended` when the server has closed the transport.
    """
    import anyio

    async def pump(read: Any, sender: Any) -> None:
        gone = (anyio.ClosedResourceError, anyio.BrokenResourceError)
        try:
            async with sender:
                with contextlib.suppress(*gone):
                    async for message in read:
                        _filter(message, words)
                        await sender.send(message)
        finally:
            ended()

    async with inner as (read, write):
        sender, receiver = anyio.create_memory_object_stream[Any](0)
        async with anyio.create_task_group() as tasks, receiver:
            tasks.start_soon(pump, read, sender)
            yield receiver, write
            tasks.cancel_scope.cancel()


def _filter(message: Any, words: str) -> None:
    """Take unusable tools out of a message that lists tools."""
    result = getattr(getattr(message, "message", None), "result", None)
    if isinstance(result, dict) and isinstance(result.get("tools"), list):
        result["tools"] = [
            t for t in usable_tools(result["tools"], words) if _known_to_sdk(t, words)
        ]


def _known_to_sdk(tool: dict[str, Any], words: str) -> bool:
    from mcp_types import Tool
    from pydantic import ValidationError

    try:
        Tool.model_validate(tool, by_name=False)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        text = "MCP server %s: tool %r is left out: %s: %s"
        log.warning(text, words, tool["name"], where, problem["msg"])
        return False
    return True


__all__ = ["HostServer"]
