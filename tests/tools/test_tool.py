"""`@tool`: schemas from signatures, arguments from models, clear refusals."""

import asyncio
from typing import Literal

import pytest
from pydantic import BaseModel

from drawloom.environments import Env, Sandbox
from drawloom.errors import ConfigError, ToolError
from drawloom.tools.tool import Tool, render, tool


class Point(BaseModel):
    x: int
    y: int = 0


@tool(readonly=True, retries=1)
async def search(query: str, limit: int = 5, where: Literal["code", "docs"] = "code") -> list[str]:
    """Find files.

    Args:
        query: what to look for,
            over two lines.
        limit: most results.
    """
    return [query] * limit


@tool(env=Env("box"))
async def touch(box: Sandbox, path: str) -> str:
    """Touch a file."""
    return path


def test_the_schema_comes_from_signature_and_docstring() -> None:
    function = search.schema["function"]
    assert function["description"] == "Find files."
    parameters = function["parameters"]
    assert parameters["required"] == ["query"]
    assert parameters["properties"]["query"]["description"] == "what to look for, over two lines."
    assert parameters["properties"]["where"]["enum"] == ["code", "docs"]
    assert "title" not in str(parameters)


def test_the_sandbox_is_not_the_model_s_to_give() -> None:
    assert list(touch.schema["function"]["parameters"]["properties"]) == ["path"]


def test_a_property_named_title_survives() -> None:
    @tool
    async def name(title: str) -> str:
        return title

    assert list(name.schema["function"]["parameters"]["properties"]) == ["title"]


async def test_arguments_are_converted_to_the_declared_types() -> None:
    @tool
    async def norm(point: Point) -> int:
        return point.x + point.y

    assert await norm.run({"point": {"x": 3}}, None) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({}, "query"), ({"query": "a", "limit": "many"}, "limit"), ({"query": "a", "x": 1}, "x")],
)
def test_wrong_arguments_are_explained_to_the_model(
    arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(ToolError, match=f"invalid arguments: {words}"):
        search.run(arguments, None)


async def test_outside_a_runtime_a_tool_is_the_function_it_is() -> None:
    assert await search("a", limit=2) == ["a", "a"]
    with pytest.raises(ConfigError, match="inside a Runtime"):
        await touch("x")


def _in_a_thread(box: Sandbox) -> int:
    return 1


def test_declarations_that_cannot_work_are_refused() -> None:
    async def untyped(x) -> int:  # type: ignore[no-untyped-def]
        return 1

    async def variadic(*x: int) -> int:
        return 1

    async def boxed(box: Sandbox) -> int:
        return 1

    for fn, words in ((untyped, "annotation"), (variadic, "described"), (boxed, "env=Env")):
        with pytest.raises(ConfigError, match=words):
            Tool(fn)
    with pytest.raises(ConfigError, match="async def"):
        Tool(_in_a_thread, env=Env("box"))
    with pytest.raises(ConfigError, match="timeout"):
        tool(timeout=0)(search.fn)
    with pytest.raises(ConfigError, match="under 8m"):
        Env("x", memory="1m")


def test_results_become_text() -> None:
    assert render("a") == "a"
    assert render({"a": [1]}) == '{"a": [1]}'
    assert render(Point(x=1)) == '{"x":1,"y":0}'
    assert render(None) == "null"


def test_a_tool_is_awaitable_many_times_over() -> None:
    async def main() -> list[list[str]]:
        return list(await asyncio.gather(*(search("a", limit=1) for _ in range(3))))

    assert asyncio.run(main()) == [["a"]] * 3
