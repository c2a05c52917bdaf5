"""What a newcomer writes wrong is answered in words; what Python has is taken."""

import dataclasses
import math
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from drawloom import Chat, Runtime, ToolCall, agent, tool
from drawloom.engine.api.engine import GenerateRequest
from drawloom.errors import ConfigError
from drawloom.runtime.execution.agent import Agent


class Point(BaseModel):
    x: int


@dataclasses.dataclass
class Data:
    name: str


@agent
async def takes(
    q: str = "", p: Point | None = None, d: Data | None = None, n: Literal[1, 2] = 1, *more: int
) -> Any:
    return [q, repr(p), repr(d), n, *more]


@agent
def plain(a: int, *, b: int = 2) -> int:
    return a + b


async def test_arguments_become_what_the_annotations_say(open_runtime: Any) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")
    values = await runtime.run(takes, "q", {"x": "1"}, {"name": "n"}, 2, "3")
    assert values == ["q", "Point(x=1)", "Data(name='n')", 2, 3]
    assert await runtime.run(plain, "1") == 3  # type: ignore[arg-type]
    kept: list[int] = []

    @agent
    async def appends(to: list[int]) -> None:
        to.append(1)

    await runtime.run(appends, kept)
    assert kept == [1]


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {"q": 5}, "q=5: Input should be a valid string"),
        ((), {"p": {"x": "y"}}, "p=.*x: Input should be a valid integer"),
        ((), {"n": 3}, "n=3"),
        ((), {"quest": "x"}, "unexpected keyword argument 'quest'"),
        (("q", None, None, 1, "many"), {}, "more='many'"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_before_the_program_starts(
    args: tuple[Any, ...], kwargs: dict[str, Any], words: str, open_runtime: Any
) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")
    with pytest.raises(ConfigError, match=f"agent takes: .*{words}"):
        await runtime.run(takes, *args, **kwargs)
    assert await runtime.store.programs() == []


async def test_a_misspelt_option_of_a_turn_is_named_with_the_nearest(open_runtime: Any) -> None:
    runtime: Runtime = await open_runtime(lambda _: "done")

    @agent
    async def misspells(how: str) -> None:
        await Chat().user("x").turn(**{how: 1})

    with pytest.raises(ConfigError, match="'temprature': did you mean 'temperature'"):
        await runtime.run(misspells, "temprature")
    with pytest.raises(ConfigError, match="'zzz': there are max_tokens, temperature"):
        await runtime.run(misspells, "zzz")


def test_a_runtime_without_asyncio_says_how_and_runs_one_program() -> None:
    with pytest.raises(ConfigError, match=r"async with Runtime"), Runtime(sandbox="none"):
        pass
    assert Runtime(sandbox="none").run_sync(plain, 1, b=3) == 4


async def test_run_sync_in_a_loop_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="await rt"):
        Runtime(sandbox="none").run_sync(plain, 1)


@pytest.mark.parametrize("name", ["a\nb", "\x00", "\ud800", "\x1b[2J", "a\u202eb"])
def test_an_agent_s_name_that_cannot_be_printed_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be printed"):

        @agent(name=name)
        async def any_name() -> None: ...


@pytest.mark.parametrize("name", ["é", "a b", "a/b", "日本", "<b>"])
def test_an_agent_s_name_is_any_that_can_be_printed(name: str) -> None:
    @agent(name=name)
    async def any_name() -> None: ...

    assert any_name.name == name


@pytest.mark.parametrize("priority", [math.nan, math.inf, -math.inf])
def test_a_priority_that_nothing_can_be_ordered_by_is_refused(priority: float) -> None:
    with pytest.raises(ConfigError, match="not a finite number"):
        Agent(plain.fn, priority=priority)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not a finite number"):
        GenerateRequest("r", "r", (5, 6), priority=priority)


@pytest.mark.parametrize("id", ["a\x00b", "\ud800", "a\nb"])
async def test_a_call_s_id_that_cannot_be_printed_is_refused_before_anything_runs(
    id: str, open_runtime: Any
) -> None:
    ran: list[int] = []

    @tool
    async def count() -> None:
        ran.append(1)

    @agent(tools=[count])
    async def calls() -> None:
        await Chat().user("go").run([ToolCall("fine", "count", {}), ToolCall(id, "count", {})])

    runtime: Runtime = await open_runtime(lambda _: "done")
    with pytest.raises(ConfigError, match=r"tool call id .* cannot be printed"):
        await runtime.run(calls)
    assert ran == []
