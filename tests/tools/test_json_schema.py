"""Signatures and docstrings in every style that Python has become one JSON schema."""

import asyncio
import dataclasses
import enum
import functools
import typing
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from drawloom.errors import ConfigError, ToolError
from drawloom.runtime.execution.agent import agent
from drawloom.tools.docstrings import parse_docstring
from drawloom.tools.tool import Tool, as_tool, tool


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Model(BaseModel):
    x: int = Field(ge=0, description="how far")
    inner: Optional["Model"] = None


@dataclasses.dataclass
class Data:
    name: str
    models: list[Model] = dataclasses.field(default_factory=list)


class Typed(TypedDict):
    a: int


class Older(typing.TypedDict):
    a: int
    b: typing.NotRequired[list[str]]


class Outer(typing.TypedDict, total=False):
    inner: Older | None


class Named(NamedTuple):
    a: int
    b: str = "b"


def _properties(given: Any) -> dict[str, Any]:
    found: dict[str, Any] = as_tool(given).schema["function"]["parameters"]["properties"]
    return found


def _run(given: Any, **arguments: Any) -> Any:
    async def main() -> Any:
        return await as_tool(given).run(arguments, None)

    return asyncio.run(main())


KINDS: list[tuple[Any, Any, Any, Any]] = [
    (Annotated[int, Field(ge=1, description="d")], 2, 2, 0),
    (Annotated[str, Field(pattern="^a")], "ab", "ab", "b"),
    (Model, {"x": 1, "inner": {"x": 2}}, Model(x=1, inner=Model(x=2)), {"x": -1}),
    (Data, {"name": "n", "models": [{"x": 1}]}, Data("n", [Model(x=1)]), {"name": []}),
    (Typed, {"a": 1}, {"a": 1}, {"a": "x"}),
    (Older, {"a": 1, "b": ["x"]}, {"a": 1, "b": ["x"]}, {"b": ["x"]}),
    (
        Annotated[list[Outer], Field(max_length=1)],
        [{"inner": {"a": 1}}],
        [{"inner": {"a": 1}}],
        [{"inner": {}}],
    ),
    (dict[str, Older | None], {"k": None}, {"k": None}, {"k": 3}),
    (Named, [1, "c"], Named(1, "c"), ["x"]),
    (Colour, "red", Colour.RED, "green"),
    (Literal["u", 1], 1, 1, 2),
    (Optional[int], None, None, "x"),  # noqa: UP045
    (int | list[str], ["a"], ["a"], {}),
    (dict[str, list[Colour]], {"k": ["blue"]}, {"k": [Colour.BLUE]}, {"k": ["x"]}),
    (tuple[int, str], [1, "a"], (1, "a"), [1]),
    (set[int], [1, 1], {1}, ["x"]),
    (uuid.UUID, str(uuid.UUID(int=1)), uuid.UUID(int=1), "x"),
    (Path, "/a", Path("/a"), 1),
]


@pytest.mark.parametrize(("kind", "given", "value", "wrong"), KINDS)
def test_an_argument_of_any_type_reaches_the_function_as_that_type(
    kind: Any, given: Any, value: Any, wrong: Any
) -> None:
    def echo(it: Any) -> Any:
        return it

    echo.__annotations__["it"] = kind
    assert _run(echo, it=given) == value
    with pytest.raises(ToolError, match=r"invalid arguments: it"):
        _run(echo, it=wrong)


def test_constraints_and_descriptions_are_in_the_schema() -> None:
    def f(
        a: Annotated[int, Field(ge=1, description="from Field")],
        m: Model,
        b: int = Field(3, le=5, description="as default"),
        *,
        c: Annotated[list[str], Field(max_length=2)] = [],  # noqa: B006
        n: int = None,  # type: ignore[assignment]  # noqa: RUF013
    ) -> Any:
        """Do.

        Args:
            a: from the docstring
            c: the list
        """
        return a, m, b, c, n

    parameters = as_tool(f).schema["function"]["parameters"]
    found = parameters["properties"]
    assert found["a"] == {"description": "from Field", "minimum": 1, "type": "integer"}
    assert (found["b"]["maximum"], found["b"]["default"]) == (5, 3)
    assert (found["c"]["maxItems"], found["c"]["description"]) == (2, "the list")
    assert parameters["$defs"]["Model"]["properties"]["x"]["description"] == "how far"
    assert parameters["required"] == ["a", "m"]
    assert _run(f, a=1, m={"x": 1}) == (1, Model(x=1), 3, [], None)
    assert _run(f, a=1, m={"x": 1}, n=None)[-1] is None


@pytest.mark.parametrize(
    "name", ["schema", "model_config", "model_x", "_x", "json", "self_", "cls_"]
)
def test_parameters_may_have_any_name(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def f({name}: int, /, other: int = 2): return {name} + other", scope)
    assert list(_properties(scope["f"])) == [name, "other"]
    assert _run(scope["f"], **{name: 1}) == 3


def test_a_default_that_is_no_json_is_left_out() -> None:
    def f(a: int = object()) -> str:  # type: ignore[assignment]
        return str(a)

    assert _properties(f) == {"a": {"type": "integer"}}


class Holder:
    """Adds."""

    def __init__(self, more: int) -> None:
        self.more = self.name = self.timeout = more

    @tool
    async def decorated(self, a: int) -> int:
        return a + self.more

    def plain(self, a: int) -> int:
        return a + self.more

    @tool
    @staticmethod
    def inside(a: int) -> int:
        return a + 2

    @staticmethod
    @tool
    def outside(a: int) -> int:
        return a + 2

    @classmethod
    @tool
    def of_class(cls, a: int) -> int:
        return a + 2

    @tool
    @classmethod
    def class_of(cls, a: int) -> int:
        return a + 2

    def __call__(self, a: int) -> int:
        return a + self.more


def _three(a: int, more: int, secret: str = "") -> int:
    return a + more


_HOLDER = Holder(2)


@pytest.mark.parametrize(
    "given",
    [
        _HOLDER.decorated,
        _HOLDER.plain,
        _HOLDER.inside,
        _HOLDER.outside,
        _HOLDER.of_class,
        _HOLDER.class_of,
        _HOLDER,
        Holder.inside,
        Holder.of_class,
        Holder.class_of,
        functools.partial(_three, more=2, secret="s"),
        tool(_HOLDER.plain),
    ],
)
def test_anything_that_can_be_called_is_a_tool(given: Any) -> None:
    assert list(_properties(given)) == ["a"]
    assert _run(given, a=40) == 42
    made = agent(tools=[given])(_agent)
    assert [t.name for t in made.tools] == [as_tool(given).name]


async def _agent() -> None: ...


def test_two_instances_keep_their_tools_apart() -> None:
    one, two = Holder(1), Holder(2)
    assert (_run(one.decorated, a=1), _run(two.decorated, a=1)) == (2, 3)
    assert asyncio.run(_called(one.decorated)) == 2


async def _called(given: Callable[..., Any]) -> Any:
    return await given(1)


@pytest.mark.parametrize(
    "wrong",
    [print, len, max, dict, 3, "name", None, Holder.decorated, Holder.plain, lambda x: x, asyncio],
)
def test_what_is_no_tool_is_refused_in_words(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"agent _agent: .*(@tool|instance)"):
        agent(tools=[wrong])(_agent)


@pytest.mark.parametrize("wrong", [tool(_three), "abc", 3, None])
def test_tools_that_are_no_list_are_refused_in_words(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"tools=\[…\]"):
        agent(tools=wrong)(_agent)


def test_tools_of_one_name_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"two tools are named \['_three'\].*McpServer"):
        agent(tools=[_three, _three])(_agent)


GOOGLE = """Do it
well.

Args:
    a (dict[str, tuple(int)], optional): the a,
        which goes on: here
    *b: the b

    c: the c

Returns:
    int: something

More words.
"""
NUMPY = """Do it
well.

Parameters
----------
a : int, optional
    the a,
    which goes on: here
b
    the b
c : {'x', 'y'}
    the c

Returns
-------
int
    something
"""
SPHINX = """Do it
well.

:param a: the a,
    which goes on: here
:type a: int
:param int b: the b
:param dict[str, int] c: the c
:returns: something
:raises ValueError: never
"""


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, SPHINX])
def test_docstrings_of_each_style_describe_the_parameters(text: str) -> None:
    description, helps = parse_docstring(text)
    assert helps == {"a": "the a, which goes on: here", "b": "the b", "c": "the c"}
    assert description.removesuffix(" More words.") == "Do it well."


@pytest.mark.parametrize(
    "text", ["", "One line.", "Note: this is prose.\nAnd so is this: yes.", "A\n---\nb", ":-) hi"]
)
def test_prose_stays_as_it_is(text: str) -> None:
    assert parse_docstring(text) == (" ".join(text.split()), {})


def test_types_of_the_place_where_a_tool_is_defined_are_found() -> None:
    class Local(BaseModel):
        x: int

    def f(it: "Local") -> int:
        return it.x

    assert _run(tool(f), it={"x": 3}) == 3
    assert isinstance(tool(f), Tool)
