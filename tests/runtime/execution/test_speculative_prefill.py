"""What a tool says is computed while it runs."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from drawloom import Chat, Runtime, Sandbox, agent, tool
from drawloom.environments import Env
from drawloom.leases import KVReply
from drawloom.runtime.execution.speculative_prefill import SpeculativePrefill
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.tools.tool_call import ToolCall

_LINES = [f"line {n} of a long report\n" for n in range(40)]


class _Watched:
    """What an engine was asked to extend, in order."""

    def __init__(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.more = asyncio.Event()
        engine = runtime.dispatcher.engine
        extend = engine.extend

        async def watched(conversation: str, tokens: tuple[int, ...], **options: Any) -> KVReply:
            reply = await extend(conversation, tokens, **options)
            self.asked.append(tokens)
            self.more.set()
            return reply

        monkeypatch.setattr(engine, "extend", watched)


async def test_what_a_tool_has_said_is_in_the_cache_before_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Runtime(sandbox="none") as runtime:
        watched = _Watched(runtime, monkeypatch)

        @tool
        async def report(lines: int) -> AsyncIterator[str]:
            for line in _LINES[:lines]:
                yield line
            await watched.more.wait()
            yield "the end"

        @agent(tools=[report])
        async def reader() -> tuple[tuple[int, ...], int, int]:
            chat = Chat().user("read")
            await chat.turn(max_tokens=4)
            (result,) = await chat.run([ToolCall("c", "report", {"lines": 30})])
            assert result.content == "".join(_LINES[:30]) + "the end"
            turn = await chat.turn(max_tokens=2)
            return chat.ids, turn.prompt_tokens, turn.cached_tokens

        ids, prompt, cached = await runtime.run(reader)
    (asked,) = watched.asked[-1:]
    assert ids[: len(asked)] == asked, "what was computed ahead is what the prompt began with"
    assert cached >= len(asked) // 16 * 16
    assert prompt - cached < 60


async def test_only_what_no_cut_can_change_is_computed_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Runtime(sandbox="none") as runtime:
        watched = _Watched(runtime, monkeypatch)

        @tool(limit=800)
        async def report() -> AsyncIterator[str]:
            for line in _LINES:
                yield line
                await asyncio.sleep(0.005)
            await watched.more.wait()

        @agent(tools=[report])
        async def reader() -> tuple[int, ...]:
            chat = Chat().user("read")
            await chat.turn(max_tokens=4)
            (result,) = await chat.run([ToolCall("c", "report", {})])
            assert "characters cut" in result.content
            await chat.turn(max_tokens=2)
            return chat.ids

        ids = await runtime.run(reader)
    assert watched.asked
    for asked in watched.asked:
        assert ids[: len(asked)] == asked


async def test_an_attempt_that_failed_is_not_what_the_next_turn_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Runtime(sandbox="none") as runtime:
        watched = _Watched(runtime, monkeypatch)
        attempts: list[int] = []

        @tool(retries=1)
        async def report() -> AsyncIterator[str]:
            attempts.append(1)
            for line in _LINES:
                yield line if len(attempts) == 1 else line.upper()
            await watched.more.wait()
            watched.more.clear()
            if len(attempts) == 1:
                raise RuntimeError("once more")

        @agent(tools=[report])
        async def reader() -> tuple[int, ...]:
            chat = Chat().user("read")
            await chat.turn(max_tokens=4)
            (result,) = await chat.run([ToolCall("c", "report", {})])
            assert result.content == "".join(_LINES).upper()
            await chat.turn(max_tokens=2)
            return chat.ids

        ids = await runtime.run(reader)
    first, *_, last = watched.asked
    assert ids[: len(last)] == last
    assert ids[: len(first)] != first


async def test_of_several_calls_those_that_ended_and_the_first_that_has_not_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Runtime(sandbox="none") as runtime:
        watched = _Watched(runtime, monkeypatch)

        @tool
        async def short() -> str:
            return "A short answer. " * 4

        @tool
        async def report() -> AsyncIterator[str]:
            for line in _LINES:
                yield line
            await watched.more.wait()

        @agent(tools=[short, report])
        async def reader() -> tuple[int, ...]:
            chat = Chat().user("read")
            await chat.turn(max_tokens=4)
            await chat.run([ToolCall("a", "short", {}), ToolCall("b", "report", {})])
            await chat.turn(max_tokens=2)
            return chat.ids

        ids = await runtime.run(reader)
        asked = watched.asked[-1]
        text = runtime.dispatcher.engine.tokenizer.decode(list(asked))
    assert ids[: len(asked)] == asked
    assert "A short answer." in text and "line 30" in text


async def test_nothing_is_computed_for_a_program_that_is_paused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Runtime(sandbox="none") as runtime:
        watched = _Watched(runtime, monkeypatch)

        @tool
        async def report() -> AsyncIterator[str]:
            (program,) = runtime.dispatcher.scheduler.state.programs.values()
            program.pause_pending = True
            for line in _LINES:
                yield line
                await asyncio.sleep(0.001)
            program.pause_pending = False

        @agent(tools=[report])
        async def reader() -> None:
            chat = Chat().user("read")
            await chat.turn(max_tokens=4)
            await chat.run([ToolCall("c", "report", {})])

        await runtime.run(reader)
    assert watched.asked == []


async def test_a_command_s_output_streams_from_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Runtime(sandbox="process") as runtime:
        watched = _Watched(runtime, monkeypatch)

        @tool(env=Env(BOX))
        async def build(box: Sandbox) -> AsyncIterator[str]:
            output = box.stream(
                "sh",
                "-c",
                f"echo '{''.join(_LINES)}'; until [ -e go ]; do sleep 0.01; done; echo ok",
            )
            async for text in output:
                yield text
                await watched.more.wait()
                await box.write("go", b"")
            yield f"exit {output.result.code}"

        @agent(tools=[build])
        async def reader() -> tuple[str, int]:
            chat = Chat().user("build")
            await chat.turn(max_tokens=4)
            (result,) = await chat.run([ToolCall("c", "build", {})])
            turn = await chat.turn(max_tokens=2)
            return result.content, turn.cached_tokens

        content, cached = await runtime.run(reader)
    assert content == "".join(_LINES) + "\nok\nexit 0"
    assert cached > len(watched.asked[-1]) - 16 > 300


async def test_a_streaming_tool_is_a_plain_function_elsewhere() -> None:
    @tool
    async def report(n: int) -> AsyncIterator[str]:
        for line in _LINES[:n]:
            yield line

    assert await report(2) == "".join(_LINES[:2])

    @tool
    async def wrong() -> AsyncIterator[str]:
        yield 1  # type: ignore[misc]

    with pytest.raises(TypeError, match="must yield str"):
        await wrong()


def test_nothing_new_is_not_looked_at_twice() -> None:
    class Idle:
        class dispatcher:
            @staticmethod
            def runs(program: str) -> bool:
                raise AssertionError("asked although nothing is new")

        id = "p"

    async def nothing(_: object) -> list[int]:
        return []

    calls = [ToolCall("a", "t", {}), ToolCall("b", "t", {})]
    ahead = SpeculativePrefill(Idle, "p:0", calls, nothing)  # type: ignore[arg-type]
    ahead.outputs[0].add("x" * 200, None)  # too little
    ahead.outputs[1].add("y" * 9000, None)  # not known before the first has ended
    ahead.close()
    ahead.outputs[0].end("z" * 9000)
