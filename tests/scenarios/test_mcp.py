"""MCP servers as tool sources, and our tools as an MCP server."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from drawloom import Chat, Env, Runtime, Sandbox, ToolError, agent, tool
from drawloom.errors import ConfigError
from drawloom.runtime.server.mcp_server import ToolServer
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.tools.mcp_client import McpServer
from drawloom.tools.tool import Tool

_FILE = Path(__file__).parents[1] / "tools" / "mcp_server.py"
_SERVER = [sys.executable, str(_FILE)]
_INSIDE = ["python3", "server.py"]
ENV = Env(BOX, memory="256m")


def _by_name(server: McpServer) -> dict[str, Tool[..., Any]]:
    return {tool.name: tool for tool in server.tools}


async def test_a_server_s_tools_are_tools(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one two three")
    async with McpServer(_SERVER) as server:
        tools = _by_name(server)
        assert set(tools) == {"count_words", "fail", "picture", "long", "pid"}
        count = tools["count_words"]
        assert not count.readonly, "what a stranger says of itself is not believed"
        assert count.schema["function"]["description"] == "Count the words of a file."
        assert count.schema["function"]["parameters"]["required"] == ["path"]
        assert await count.run({"path": str(tmp_path / "text")}, None) == "3"
        with pytest.raises(ToolError, match="it went wrong"):
            await tools["fail"].run({}, None)
        with pytest.raises(ToolError, match="path: Field required"):
            await count.run({}, None)
        with pytest.raises(ToolError, match="no such argument"):
            await count.run({"path": "x", "more": 1}, None)
        assert await tools["picture"].run({}, None) == "[image image/png]"
        assert "pid" in json.loads(str(await tools["pid"].run({}, None)))
    with pytest.raises(ToolError, match="not open"):
        await tools["fail"].run({}, None)


async def test_hints_are_believed_of_a_trusted_server_and_names_may_have_a_prefix() -> None:
    async with McpServer(_SERVER, trusted=True, name="words") as server:
        tools = _by_name(server)
    assert tools["words_count_words"].readonly and tools["words_count_words"].idempotent
    assert not tools["words_fail"].readonly


async def test_a_model_calls_them(open_runtime: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one two three")
    call = {"name": "count_words", "arguments": {"path": str(tmp_path / "text")}}

    def script(prompt: str) -> str:
        if "<tool_response>" in prompt:
            return "there are three"
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"

    runtime: Runtime = await open_runtime(script)
    async with McpServer(_SERVER) as server:

        @agent(tools=server.tools)
        async def counts() -> tuple[str, str]:
            chat = Chat().user("count")
            turn = await chat.turn()
            (result,) = await chat.run(turn.calls)
            return result.content, (await chat.turn()).text

        assert await runtime.run(counts) == ("3", "there are three")


@pytest.mark.parametrize("mood", ["nonsense", "silent"])
async def test_a_server_that_does_not_speak_the_protocol_is_told_so(
    mood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drawloom.tools.mcp_client._OPENING_SECONDS", 3.0)
    with pytest.raises(ToolError, match="does not answer"):
        async with McpServer([*_SERVER, mood]):
            pass


async def test_a_server_that_cannot_be_started_or_is_none_is_named() -> None:
    with pytest.raises(ToolError, match="no-such-program"):
        async with McpServer(["no-such-program"]):
            pass
    wrongs: list[str | list[str]] = ["a command", [], ""]
    for wrong in wrongs:
        with pytest.raises(ConfigError, match="no MCP server"):
            McpServer(wrong)
    with pytest.raises(ConfigError, match=r"runtime\.sandbox"):
        McpServer(_SERVER, env=ENV)


# --- inside a sandbox ---------------------------------------------------------------------


def _env(mood: str = "") -> Env:
    """An environment with the server's file in it."""
    text = _FILE.read_text().replace("'", "'\\''")
    return Env(BOX, setup=(f"printf '%s' '{text}' > server.py",), memory="256m")


async def test_inside_a_sandbox_a_server_sees_the_files_of_its_program() -> None:
    env = _env()
    async with (
        Runtime(sandbox="process") as runtime,
        McpServer(_INSIDE, env=env, within=runtime.sandbox) as server,
    ):
        tools = _by_name(server)

        @tool(env=env)
        async def write(box: Sandbox, text: str) -> None:
            await box.write("text", text.encode())

        @agent(tools=[*server.tools, write])
        async def counts(text: str) -> list[Any]:
            await write(text)
            found = [await tools["count_words"](path="text")]
            with pytest.raises(ToolError, match="it went wrong"):
                await tools["fail"]()
            long = await tools["long"]()
            first, second = [await tools["pid"]() for _ in range(2)]
            assert first == second, "it goes on running between calls"
            return [*found, len(long)]

        assert await runtime.run(counts, "a b c") == ["3", 100_000]
        assert await runtime.run(counts, "a b c d") == ["4", 100_000]
        assert runtime.dispatcher.pool is not None and runtime.dispatcher.pool.in_use == 0


async def test_inside_a_sandbox_a_server_that_dies_is_told_with_its_last_words() -> None:
    env = _env()
    async with (
        Runtime(sandbox="process") as runtime,
        McpServer([*_INSIDE, "crash"], env=env, within=runtime.sandbox) as server,
    ):
        tools = _by_name(server)

        @agent(tools=server.tools)
        async def counts() -> str:
            with pytest.raises(ToolError, match=r"has ended \(7\): dying"):
                await tools["count_words"](path="text")
            return "told"

        assert await runtime.run(counts) == "told"


# --- ours as a server ---------------------------------------------------------------------


@tool(env=Env(BOX))
async def keep(box: Sandbox, text: str) -> str:
    """Keep a text.

    Args:
        text: what to keep
    """
    await box.write("kept", text.encode())
    return box.id


@tool(env=Env(BOX), readonly=True)
async def kept(box: Sandbox) -> str:
    """What was kept."""
    return (await box.read("kept")).decode()


async def test_our_tools_are_an_mcp_server_whose_connections_are_programs(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/runs.db"
    command = ["-m", "drawloom", "mcp", f"{__file__}:keep", f"{__file__}:kept"]
    command += ["--sandbox", "process", "--store", store]
    async with Client(StdioServerParameters(command=sys.executable, args=command)) as client:
        listed = (await client.list_tools()).tools
        assert [t.name for t in listed] == ["keep", "kept"]
        assert listed[0].input_schema["properties"]["text"]["description"] == "what to keep"
        assert listed[1].annotations is not None and listed[1].annotations.read_only_hint
        missing = await client.call_tool("kept", {})
        assert missing.is_error and "No such file" in _text(missing)
        assert _text(await client.call_tool("keep", {"text": "42"})).startswith("box-")
        assert _text(await client.call_tool("kept", {})) == "42"
        wrong = await client.call_tool("keep", {"txet": "42"})
        assert wrong.is_error and "invalid arguments" in _text(wrong)
        unknown = await client.call_tool("nothing", {})
        assert unknown.is_error and "there are: keep, kept" in _text(unknown)
    from drawloom.runtime.store.store import Store

    rows = Store(store, write=False)
    (program,) = await rows.programs()
    assert program.status == "done"
    assert [s.name for s in await rows.steps(program.id)] == ["kept", "keep", "kept"]
    assert await rows.leases() == []
    await rows.close()


def _text(result: Any) -> str:
    return str(result.content[0].text)


async def test_calls_of_one_connection_run_side_by_side(open_runtime: Any) -> None:
    import asyncio

    both = asyncio.Barrier(2)

    @tool
    async def meet() -> str:
        await both.wait()
        return "met"

    runtime: Runtime = await open_runtime(lambda _: "")
    served = ToolServer(runtime, [meet])
    from mcp.shared.memory import create_client_server_memory_streams

    async with create_client_server_memory_streams() as (near, far):
        import contextlib

        @contextlib.asynccontextmanager
        async def streams() -> Any:
            yield far

        @contextlib.asynccontextmanager
        async def transport() -> Any:
            yield near

        serving = asyncio.create_task(served.serve(streams))
        async with Client(transport()) as client:
            found = await asyncio.gather(*(client.call_tool("meet", {}) for _ in range(2)))
        assert [_text(result) for result in found] == ["met", "met"]
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
