"""Results of tools share the model's context; no output of a tool ends a program."""

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom import Chat, Runtime, ToolCall, ToolResult, agent, tool
from drawloom.engine.api.engine import EngineInfo
from drawloom.runtime.execution.result_shares import cut_results, room


def _info(context: int, kv: int) -> EngineInfo:
    return EngineInfo("e", "m", "cpu", context, kv, 16)


def test_a_share_is_a_quarter_of_the_context_and_two_thirds_of_what_is_left() -> None:
    assert room(_info(4096, 100_000), 0, 256) == 1024
    assert room(_info(131_072, 1 << 20), 0, 256) == 32_768
    assert room(_info(4096, 1024), 0, 256) == 512
    assert room(_info(4096, 100_000), 3400, 256) == 293
    assert room(_info(4096, 100_000), 5000, 256) == 64


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.integers(400, 1000))
async def test_results_together_keep_to_the_total_and_short_ones_stay_whole(
    sizes: list[int], total: int
) -> None:
    results = [ToolResult(str(i), "t", "x" * n) for i, n in enumerate(sizes)]
    cut = await cut_results(results, total, len)
    kept = sum(r.content.count("x") for r in cut)
    assert kept <= total
    fair = total // len(sizes)
    for before, after in zip(results, cut, strict=True):
        if len(before.content) + 32 <= fair:
            assert after == before
        elif after != before:
            assert "characters cut" in after.content
            assert after.content.count("x") >= (fair - 32) * 3 // 4


@tool
async def huge(characters: str) -> str:
    return characters * (3_000_000 // len(characters))


@tool
async def fails(characters: str) -> str:
    raise ValueError(characters * (3_000_000 // len(characters)))


@pytest.mark.parametrize("characters", ["a b c ", "x", "\n", "€", "😀", "\x00", "<|im_end|>"])
async def test_no_output_of_a_tool_is_too_long_for_the_context(
    characters: str, open_runtime: Any
) -> None:
    @agent(tools=[huge, fails])
    async def calls() -> list[str]:
        chat = Chat().user("go")
        found: list[str] = []
        for turn in range(5):
            given = {"characters": characters}
            wanted = [ToolCall(f"{turn}.{t.name}", t.name, given) for t in (huge, fails)]
            found += [r.content for r in await chat.run(wanted)]
            await chat.turn()
            assert len(chat.ids) < 4096
        return found

    runtime: Runtime = await open_runtime(lambda _: "done")
    contents = await runtime.run(calls)
    assert all("characters cut" in text for text in contents)


async def test_others_are_served_while_what_is_new_is_counted(open_runtime: Any) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")
    tokenizer = runtime.dispatcher.engine.tokenizer
    encode, counting, may_end = tokenizer.encode, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def blocks(text: Any) -> list[int]:
        if "long " * 1000 in str(getattr(text, "text", text)):
            loop.call_soon_threadsafe(counting.set)
            assert may_end.wait(60)
        return encode(text)

    tokenizer.encode = blocks  # type: ignore[method-assign]
    order: list[str] = []

    @tool
    async def note(what: str) -> str:
        order.append(what)
        return what

    @agent(tools=[note])
    async def long() -> list[str]:
        chat = Chat().user("long " * 1000)
        return [r.content for r in await chat.run([ToolCall("1", "note", {"what": "long"})])]

    @agent(tools=[note])
    async def short() -> str:
        chat = Chat().user("short")
        await chat.run([ToolCall("1", "note", {"what": "short"})])
        return (await chat.turn()).text

    waits = await runtime.start(long)
    await counting.wait()
    assert await runtime.run(short) == "done"
    may_end.set()
    assert await waits.result() == ["long"]
    assert order == ["short", "long"]
