"""MCP servers that say odd things, die or keep silent: a tool is lost, no server, no program."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drawloom import Chat, Env, Runtime, ToolCall, ToolResult, agent, tool
from drawloom.errors import ConfigError, ToolError, ToolTimeout
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.tools import mcp_host
from drawloom.tools.mcp_client import McpServer
from drawloom.tools.mcp_host import HostServer
from drawloom.tools.mcp_listing import usable_tools
from drawloom.tools.tool import Tool
from tests.tools import mcp_server as odd

_FILE = Path(__file__).parents[1] / "tools" / "mcp_server.py"


def _command(mood: str = "") -> list[str]:
    return [sys.executable, str(_FILE), mood]


def _by_name(server: McpServer) -> dict[str, Tool[..., Any]]:
    return {tool.name: tool for tool in server.tools}


async def test_an_odd_tool_is_lost_with_a_warning_and_the_others_stay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with McpServer(_command("odd")) as server:
        tools = _by_name(server)
        assert set(tools) == {"dialect", "reference", "a_b", "a_b_2", "_3d", "described"}
        with pytest.raises(ToolError, match="it went wrong"):
            await tools["a_b_2"].run({}, None)
    for name in (*odd.ODD, "3d", "a.b"):
        assert f"tool '{name}'" in caplog.text


async def test_inside_a_sandbox_an_odd_tool_is_lost_likewise() -> None:
    text = _FILE.read_text().replace("'", "'\\''")
    env = Env(BOX, setup=(f"printf '%s' '{text}' > server.py",), memory="256m")
    async with (
        Runtime(sandbox="process") as runtime,
        McpServer(["python3", "server.py", "odd"], env=env, within=runtime.sandbox) as server,
    ):
        assert set(_by_name(server)) == {"dialect", "reference", "a_b", "a_b_2", "_3d", "described"}


@pytest.mark.parametrize("name", list(odd.ODD))
def test_each_odd_schema_is_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    fine = {"name": "fine", "inputSchema": {"type": "object"}}
    assert usable_tools([{"name": name, "inputSchema": odd.ODD[name]}, fine], "s") == [fine]
    assert f"MCP server s: tool '{name}' is left out" in caplog.text


async def test_names_that_two_servers_share_are_refused_or_told_apart() -> None:
    async with McpServer(_command()) as one, McpServer(_command(), name="two") as two:

        @tool
        async def fail() -> None: ...

        for tools in ([*one.tools, *one.tools], [*one.tools, fail]):
            with pytest.raises(ConfigError, match=r"McpServer\(…, name=…\)"):
                agent(tools=tools)(_agent)
        both = agent(tools=[*one.tools, *two.tools])
        assert {"fail", "two_fail"} <= {t.name for t in both(_agent).tools}


async def _agent() -> None: ...


async def test_a_server_has_the_environment_variables_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DRAWLOOM_TEST", "ours")
    for env, value in (({"DRAWLOOM_TEST": "given"}, "given"), (None, "")):
        async with McpServer(_command("dies"), env=env) as server:
            assert await _by_name(server)["variable"].run({}, None) == value
    with pytest.raises(ConfigError, match="URL"):
        McpServer("http://127.0.0.1:1/", env={"A": "b"})
    with pytest.raises(ConfigError, match="text"):
        McpServer(["x"], env={"A": 1})  # type: ignore[dict-item]


async def test_a_server_that_died_is_started_again_by_the_next_call(
    open_runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")
    async with McpServer(_command("dies")) as server:

        @agent(tools=server.tools)
        async def calls() -> list[ToolResult]:
            chat = Chat().user("go")
            found: list[ToolResult] = []
            for place, name in enumerate(["pid", "pid", "fail", "pid", "fail", "pid"]):
                found += await chat.run([ToolCall(f"c{place}", name, {})])
            return found

        with caplog.at_level(logging.WARNING, "drawloom.tools"):
            one, same, died, two, again, three = await runtime.run(calls)
    assert one.content == same.content
    assert len({one.content, two.content, three.content}) == 3
    for result in (died, again):
        assert not result.ok and "has ended" in result.content
    assert caplog.text.count("it is started again") == 2


async def test_a_server_that_always_dies_is_started_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[float] = []
    now = 0.0
    monkeypatch.setattr("drawloom.tools.mcp_host.monotonic", lambda: now)
    async with McpServer(_command("crash")) as server:
        call, host = _by_name(server)["pid"], server._host
        assert host is not None
        begun = host._connect

        async def counted() -> None:
            starts.append(now)
            await begun()

        monkeypatch.setattr(host, "_connect", counted)
        for now in range(30):  # noqa: B007
            with pytest.raises(ToolError, match="has ended"):
                await call.run({}, None)
    assert starts == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("mood", ["silent", "nonsense"])
async def test_timeout_bounds_the_opening(mood: str) -> None:
    with pytest.raises(ToolError, match="does not answer"):
        async with McpServer(_command(mood), timeout=1.0):
            pass


async def test_timeout_bounds_a_call_that_is_never_answered() -> None:
    async with McpServer(_command("mute"), timeout=1.0) as server:
        with pytest.raises(ToolTimeout, match="timed out after 1 s"):
            await _by_name(server)["pid"].run({}, None)


async def test_no_failure_is_anything_but_a_tool_error() -> None:
    wrongs: list[str | list[str]] = [["no-such-program"], ["false"], "http://127.0.0.1:1/mcp"]
    for wrong in wrongs:
        with contextlib.suppress(ToolError):
            async with McpServer(wrong, timeout=5.0):
                raise AssertionError("it opened")


async def test_a_call_given_up_while_a_dead_server_is_left_does_not_close_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaving, made = asyncio.Event(), list[Any]()

    class Client:
        async def list_tools(self, cursor: object) -> Any:
            return SimpleNamespace(tools=[], next_cursor=None)

        async def call_tool(self, tool: str, arguments: object) -> Any:
            if len(made) == 1:
                raise ConnectionError("gone")
            return SimpleNamespace(model_dump=lambda **options: {"content": []})

    @contextlib.asynccontextmanager
    async def connection(*of: Any) -> AsyncIterator[Client]:
        made.append(of)
        yield Client()
        if len(made) == 1:
            leaving.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(mcp_host, "_client", connection)
    server = HostServer("http://x", "x", None, 30.0)
    await server.open()
    with pytest.raises(ToolError, match="gone"):
        await server.call("t", {})
    given_up = asyncio.create_task(server.call("t", {}))
    await leaving.wait()
    given_up.cancel()
    await asyncio.wait([given_up])
    server._next_start = 0.0
    assert await server.call("t", {}) == {"content": []}
    await server.close()
