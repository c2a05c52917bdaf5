"""Whatever a tool raises, returns or blocks: its call has an answer and everything else goes on."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest

from drawloom import Chat, Env, Runtime, Sandbox, ToolCall, ToolResult, agent, tool
from drawloom.errors import SandboxDied, ToolError, ToolTimeout
from drawloom.runtime.execution.contain import contained
from drawloom.runtime.execution.env_progress import Progress
from drawloom.runtime.execution.step_sandbox import StepSandbox
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.tools.tool import Tool


class Unprintable(BaseException):
    def __str__(self) -> str:
        raise ValueError("no words")


RAISED = [
    SystemExit(3),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
    GeneratorExit(),
    StopIteration(1),
    StopAsyncIteration(),
    Unprintable(),
    BaseException("base"),
    ExceptionGroup("several", [ValueError("one")]),
    MemoryError(),
    RecursionError(),
    ValueError(),
]


def _tools(error: BaseException) -> list[Tool[..., Any]]:
    """The same failure in every kind of function that can be a tool."""

    async def coroutine() -> str:
        raise error

    async def later() -> str:
        await asyncio.sleep(0)
        raise error

    def plain() -> str:
        raise error

    async def stream() -> AsyncIterator[str]:
        yield "some"
        raise error

    def generator() -> Iterator[str]:
        yield "some"
        raise error

    def factory() -> Any:
        return coroutine()

    return [tool(fn) for fn in (coroutine, later, plain, stream, generator, factory)]


async def _results(runtime: Runtime, tools: list[Tool[..., Any]]) -> list[ToolResult]:
    @agent(tools=tools)
    async def calls() -> list[ToolResult]:
        chat = Chat().user("go")
        wanted = [ToolCall(f"c{place}", t.name, {}) for place, t in enumerate(tools)]
        found = await chat.run(wanted)
        assert (await chat.turn()).text == "done"
        return found

    return await runtime.run(calls)


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
async def test_what_a_tool_raises_fails_its_call_alone(
    error: BaseException, open_runtime: Any
) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")
    results = await _results(runtime, _tools(error))
    assert len(results) == 6
    for result in results:
        assert not result.ok and result.content.startswith("error: ")
    (program,) = await runtime.store.programs()
    rows = [row for row in await runtime.store.steps(program.id) if row.kind == "tool"]
    assert [row.status for row in rows] == ["done"] * 6
    assert not any(row.detail["ok"] for row in rows)


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
async def test_agent_code_that_called_it_gets_a_tool_error(
    error: BaseException, open_runtime: Any
) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")

    @agent
    async def calls() -> int:
        failed = 0
        for each in _tools(error):
            try:
                await each()
            except ToolError:
                failed += 1
        return failed

    assert await runtime.run(calls) == 6


async def test_the_owner_s_cancellation_is_not_the_tool_s_failure(open_runtime: Any) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")
    started = asyncio.Event()

    @tool
    async def hangs() -> None:
        started.set()
        await asyncio.sleep(60)

    @agent(tools=[hangs])
    async def calls() -> None:
        await Chat().user("go").run([ToolCall("c", "hangs", {})])

    run = await runtime.start(calls)
    await started.wait()
    await run.cancel()
    (program,) = await runtime.store.programs()
    assert program.status == "cancelled"


async def _cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


async def _cancels_itself_later() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    async with asyncio.timeout(60):
        await asyncio.sleep(60)


async def _cancels_itself_and_streams() -> AsyncIterator[str]:
    yield "some"
    await _cancels_itself()


@pytest.mark.parametrize(
    "fn", [_cancels_itself, _cancels_itself_later, _cancels_itself_and_streams]
)
async def test_a_tool_that_cancels_its_own_task_fails_alone(
    fn: Callable[..., Any], open_runtime: Any
) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")
    cancels = tool(name="cancels")(fn)

    @agent(tools=[cancels])
    async def calls() -> str:
        chat = Chat().user("go")
        (result,) = await chat.run([ToolCall("c", "cancels", {})])
        assert not result.ok
        with pytest.raises(ToolError, match="CancelledError"):
            await cancels()
        return (await chat.turn()).text

    assert await runtime.run(calls) == "done"


async def test_a_cancelled_task_that_a_tool_waits_for_is_the_tool_s_failure() -> None:
    async def waits() -> None:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    with pytest.raises(ToolError, match="CancelledError"):
        await contained(waits)


_CTRL_C = """
import asyncio, os, signal, sys, time
from drawloom.runtime.execution.contain import contained
from drawloom.runtime.execution.env_progress import Progress
from drawloom.runtime.execution.step_sandbox import StepSandbox

# a shell that runs the tests in the background has its children ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)

async def busy():
    os.kill(os.getpid(), signal.SIGINT)
    if sys.argv[1] == "twice":
        os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(30)

async def main():
    try:
        await contained(busy)
    except Exception as error:
        print("swallowed", repr(error))

if sys.argv[1] == "loop":
    asyncio.new_event_loop().run_until_complete(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["once", "twice", "loop"])
def test_ctrl_c_ends_the_process(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CTRL_C, how], capture_output=True, text=True, timeout=60
    )
    assert "swallowed" not in done.stdout
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode in (1, -signal.SIGINT)


async def test_a_plain_function_does_not_hold_the_loop_and_is_given_up_after_its_time(
    open_runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")
    release = os.pipe()

    @tool(timeout=0.2)
    def stuck() -> str:
        return str(os.read(release[0], 1))

    @tool
    def writes() -> str:
        return "quick"

    late, quick = await _results(runtime, [stuck, writes])
    os.write(release[1], b"x")
    assert (quick.content, quick.ok) == ("quick", True)
    assert late.content.startswith("error: timed out after 0.2 s; it cannot be stopped")
    assert "stuck" in caplog.text


async def test_a_plain_generator_that_was_given_up_ends_at_its_next_yield(
    open_runtime: Any,
) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")
    ended = threading.Event()

    @tool(timeout=0.1)
    def endless() -> Iterator[str]:
        try:
            while not ended.wait(0.01):
                yield "again"
        finally:
            ended.set()

    (late,) = await _results(runtime, [endless])
    assert "goes on in the background until it yields" in late.content
    assert await asyncio.to_thread(ended.wait, 10)


async def test_a_cancelled_command_of_a_dead_environment_is_cancelled() -> None:
    class Dead:
        async def exec(self, *command: Any, **options: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

        async def cancel(self, key: str) -> None:
            raise SandboxDied("it is gone")

    begun = asyncio.Event()
    box = StepSandbox(cast(Any, Dead()), "p:c", None, Progress())
    task = asyncio.create_task(box.exec("sleep 9"))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def _sleeps() -> None:
    time.sleep(0.8)


async def _blocks() -> str:
    _sleeps()
    return "done"


async def _offloads() -> str:
    await asyncio.to_thread(_sleeps)
    return "done"


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drawloom.runtime.execution.blocking._WARN_SECONDS", 0.2)
    monkeypatch.setattr("drawloom.runtime.execution.blocking._LOOK_SECONDS", 0.05)


@pytest.mark.usefixtures("quick_watch")
@pytest.mark.parametrize(("fn", "warned"), [(_blocks, True), (_offloads, False), (_sleeps, False)])
async def test_a_tool_that_blocks_the_loop_is_named(
    fn: Callable[[], Any], warned: bool, open_runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")
    with caplog.at_level(logging.WARNING, "drawloom.runtime"):
        await _results(runtime, [tool(fn)])
    assert (f"tool {fn.__name__} blocks the event loop" in caplog.text) is warned


@pytest.mark.usefixtures("quick_watch")
async def test_what_is_no_tool_may_block_unblamed(
    open_runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")

    @tool
    async def waits() -> str:
        asyncio.get_running_loop().call_soon(_sleeps)  # as the engine's start might
        await asyncio.sleep(0.1)
        return "done"

    await _results(runtime, [waits])
    assert "blocks" not in caplog.text


ENV = Env(BOX, memory="64m")


@tool(env=ENV, timeout=0.5)
async def shell(box: Sandbox, command: str) -> str:
    return (await box.sh(command)).text


@tool(env=ENV, timeout=0.5)
async def streams(box: Sandbox, command: str) -> AsyncIterator[str]:
    async for text in box.stream(command):
        yield text


@tool(env=ENV)
async def handles(box: Sandbox, command: str) -> str:
    try:
        return (await box.exec(command, timeout=0.5)).text
    except ToolTimeout as error:
        return f"handled: {error}"


async def test_a_command_that_did_not_run_to_its_end_is_an_error_to_the_model() -> None:
    commands = ["echo begun; sleep 30", "no-such-command 3", "/dev/null", "echo fine", "exit 7"]

    @agent(tools=[shell, streams, handles])
    async def calls(name: str) -> list[ToolResult]:
        chat = Chat().user("go")
        return [
            (await chat.run([ToolCall(f"c{i}", name, {"command": command})]))[0]
            for i, command in enumerate(commands)
        ]

    async with Runtime(sandbox="process") as runtime:
        for name in ("shell", "streams"):
            late, missing, barred, fine, failed = await runtime.run(calls, name)
            assert late.content == "error: the command timed out after 0.5 s; it printed:\nbegun"
            assert "could not be run (exit 127)" in missing.content
            assert "no-such-command" in missing.content
            assert "could not be run (exit 126)" in barred.content
            assert [r.ok for r in (late, missing, barred)] == [False] * 3
            assert (fine.content, fine.ok, failed.ok) == ("fine\n", True, True)
        late = (await runtime.run(calls, "handles"))[0]
        assert late.ok and late.content.startswith("handled: the command timed out after 0.5 s")
