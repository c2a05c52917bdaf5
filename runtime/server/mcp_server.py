"""MCP server that offers drawloom's tools: `drawloom mcp file.py:tool`.

A connection is one program: its tools share the program's environments, its calls are steps of the
program, and the end of the connection releases everything.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from drawloom.errors import DrawloomError
from drawloom.runtime.execution.agent import Agent
from drawloom.runtime.server.served_runtime import ServedRuntime
from drawloom.tools.tool import Tool, render

_Call = tuple[Tool[..., Any], dict[str, Any], "asyncio.Future[Any]"]
Streams = Callable[[], AbstractAsyncContextManager[tuple[Any, Any]]]


class ToolServer:
    """Serve tools to one client over a pair of streams."""

    def __init__(self, runtime: ServedRuntime, tools: Sequence[Tool[..., Any]]) -> None:
        self._runtime = runtime
        self._tools = {tool.name: tool for tool in tools}
        self._calls: asyncio.Queue[_Call | None] = asyncio.Queue()

    async def serve(self, streams: Streams = stdio_server) -> None:
        """Serve until the client disconnects.

        Args:
            streams: opens the pair of streams; by default standard input and output.
        """
        server: Server[Any] = Server(
            "drawloom", version="0.1.0", on_list_tools=self._list, on_call_tool=self._call
        )
        run = await self._runtime.start(Agent(self._session, tools=list(self._tools.values())))
        try:
            async with streams() as (reader, writer):
                await server.run(reader, writer, server.create_initialization_options())
        finally:
            self._calls.put_nowait(None)
            await run.result()

    async def _session(self) -> None:
        """Run the calls of a connection concurrently; the body of its program."""
        running: set[asyncio.Task[Any]] = set()
        while (call := await self._calls.get()) is not None:
            task = asyncio.create_task(self._run(*call))
            running.add(task)
            task.add_done_callback(running.discard)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @staticmethod
    async def _run(
        tool: Tool[..., Any], arguments: dict[str, Any], answer: "asyncio.Future[Any]"
    ) -> None:
        try:
            value = await tool(**tool.signature.validate(arguments))
        except Exception as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(value)

    async def _list(self, context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=tool.name,
                    description=tool.signature.description,
                    input_schema=tool.signature.parameters,
                    annotations=types.ToolAnnotations(
                        read_only_hint=tool.readonly, idempotent_hint=tool.idempotent
                    ),
                )
                for tool in self._tools.values()
            ]
        )

    async def _call(
        self, context: Any, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = self._tools.get(params.name)
        if tool is None:
            known = ", ".join(self._tools)
            return _answer(f"there is no tool {params.name!r}; there are: {known}", failed=True)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls.put_nowait((tool, dict(params.arguments or {}), future))
        try:
            return _answer(render(await future))
        except DrawloomError as error:
            return _answer(str(error), failed=True)
        except Exception as error:
            return _answer(f"{type(error).__name__}: {error}", failed=True)


def _answer(text: str, *, failed: bool = False) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=failed)


__all__ = ["ToolServer"]
