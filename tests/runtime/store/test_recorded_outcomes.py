"""Results and errors of steps come back from the store as the code saw them."""

import asyncio
import enum
import json
import math
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PrivateAttr, RootModel

from drawloom import errors, tool
from drawloom.errors import ToolError, ToolTimeout
from drawloom.runtime.execution.replay import record_value
from drawloom.runtime.store.database_errors import dump_json
from drawloom.runtime.store.declared_classes import classes_in
from drawloom.runtime.store.error_json import can_record, record_error, restore_error
from drawloom.runtime.store.result_json import NotKept, decode, describe, encode, result_json
from tests.lanes import examples


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Place(NamedTuple):
    x: int
    name: str


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    color: Color = Color.RED


@dataclass
class Tree:
    value: Any
    children: "list[Tree]" = field(default_factory=list)
    size: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.size = 1 + sum(child.size for child in self.children)


class Person(BaseModel):
    name: str
    age: Annotated[int, Field(alias="years")] = 3
    at: Point | None = None
    _seen: int = PrivateAttr(default=7)


class Open(BaseModel, extra="allow"):
    tags: tuple[str, ...] = ()


class Names(RootModel[list[str]]): ...


DECLARED = Annotated[
    Tree | Person | Open | Names | Place | Rights | Level | Optional[Point],  # noqa: UP045
    "anything",
]
CLASSES = classes_in([DECLARED, Literal[Color.RED]])

_texts = st.text(st.characters(exclude_categories=()), max_size=8)
_zones = st.sampled_from([None, UTC, timezone(timedelta(hours=-5, minutes=-30))])
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 400), 1 << 400)
    | st.floats()
    | _texts
    | st.binary(max_size=8)
    | st.binary(max_size=8).map(bytearray)
    | st.complex_numbers()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=_zones)
    | st.timedeltas()
    | _texts.filter(lambda t: "\0" not in t).map(Path)
    | st.sampled_from([*Color, *Level])
    | st.sampled_from([Rights.READ, Rights.READ | Rights.WRITE, Rights(0)])
    | st.builds(Place, st.integers(), _texts)
    | st.builds(Point, st.floats(), st.sampled_from(Color))
)
_keys = _texts | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), _texts)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=3)
    return (
        lists
        | lists.map(tuple)
        | st.dictionaries(_keys, inner, max_size=3)
        | st.sets(_keys, max_size=3)
        | st.frozensets(_keys, max_size=3)
        | st.builds(Tree, inner, st.lists(st.builds(Tree, inner), max_size=2))
        | st.builds(Person, name=_texts, years=st.integers(), at=st.builds(Point, st.floats()))
        | st.builds(lambda more: Open.model_validate({"tags": ["a"], "more": more}), inner)
        | st.lists(_texts, max_size=2).map(Names)
        | st.fixed_dictionaries({"$": inner, "v": inner})
    )


values = st.recursive(_scalars, _containers, max_leaves=8)


def _same(one: Any, other: Any) -> bool:
    """Equal and of the same types all through, and NaN is itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, complex):
        return _same(one.real, other.real) and _same(one.imag, other.imag)
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=False)
        return len(one) == len(other) and all(_same(a, b) for a, b in pairs)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tree | Point):
        names = type(one).__dataclass_fields__
        return all(_same(getattr(one, n), getattr(other, n)) for n in names)
    if isinstance(one, BaseModel):
        marks = one.model_fields_set == other.model_fields_set
        inner = _same(one.__pydantic_private__, other.__pydantic_private__)
        extra = _same(one.model_extra, other.model_extra)
        return marks and inner and extra and _same(dict(one), dict(other))
    return bool(one == other)


def _stored(data: Any) -> Any:
    return json.loads(dump_json(data))


@settings(max_examples=examples(400), deadline=None)
@given(values)
def test_any_value_comes_back_as_it_was(value: Any) -> None:
    kept = encode(value, CLASSES)
    json.dumps(kept, allow_nan=False).encode()
    assert _same(decode(_stored(kept), CLASSES), value)


@settings(max_examples=examples(200), deadline=None)
@given(values)
def test_any_argument_looks_the_same_again(value: Any) -> None:
    assert describe(value) == describe(value) == _stored(describe(value))
    dump_json(result_json(value))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(int, {1: 2}), {1: 2}),
        (type("Text", (str,), {})("x"), "x"),
        (type("Number", (int,), {})(5), 5),
        (memoryview(b"x"), b"x"),
    ],
)
def test_what_derives_from_a_standard_type_comes_back_as_that(value: Any, plain: Any) -> None:
    assert _same(decode(encode(value)), plain)


class Foreign:
    pass


def _endless() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def _unset() -> Point:
    return Point.__new__(Point)


@pytest.mark.parametrize(
    "value",
    [
        Foreign(),
        object(),
        len,
        [Foreign()],
        {"a": Foreign()},
        {Foreign()},
        (1, Foreign()),
        _endless(),
        Color.RED,
        Point(1),
        Person(name="x"),
        Place(1, "x"),
        Level.LOW,
        iter([]),
        Foreign,
    ],
)
def test_what_is_not_declared_is_refused_when_it_is_recorded(value: Any) -> None:
    with pytest.raises(NotKept):
        encode(value)
    describe(value)


def test_a_field_that_was_never_set_is_refused() -> None:
    with pytest.raises(NotKept, match="never set"):
        encode(_unset(), CLASSES)


def test_code_of_a_class_does_not_run_when_a_value_comes_back() -> None:
    @dataclass
    class Loud:
        x: int

        def __post_init__(self) -> None:
            ran.append(self.x)

    ran: list[int] = []
    classes = classes_in([list[Loud]])
    kept = encode([Loud(1)], classes)
    assert decode(kept, classes) == [Loud(1)]
    assert ran == [1, 1]  # twice here, and not by decode


def test_a_class_that_changed_is_said() -> None:
    kept = encode(Point(1), CLASSES)
    with pytest.raises(ValueError, match="no longer declares"):
        decode(kept)

    @dataclass
    class Point2:
        x: float

    with pytest.raises(ValueError, match=r"had the fields.*color"):
        decode(kept, {"Point": Point2, "Color": Color})


# --- errors ---------------------------------------------------------------------------------

TREE = [getattr(errors, name) for name in errors.__all__]


class Refused(ToolError):
    """One with a constructor of its own."""

    def __init__(self, code: int, *, path: Path) -> None:
        super().__init__(f"refused with {code}")
        self.code, self.path = code, path

    def __str__(self) -> str:
        return f"{self.args[0]} at {self.path}"


@settings(max_examples=examples(200), deadline=None)
@given(
    kind=st.sampled_from([*TREE, ValueError, KeyError, ZeroDivisionError]),
    arguments=st.lists(_texts | st.integers() | st.binary(max_size=4), max_size=3),
    attributes=st.dictionaries(st.sampled_from("abc"), st.integers() | _texts, max_size=2),
)
def test_any_error_comes_back_with_its_class_words_and_attributes(
    kind: type[Exception], arguments: list[Any], attributes: dict[str, Any]
) -> None:
    error = kind(*arguments)
    vars(error).update(attributes)
    record = record_error(error)
    back = restore_error(_stored(record))
    assert type(back) is kind
    assert (back.args, str(back), vars(back)) == (error.args, str(error), vars(error))


def test_an_error_of_the_user_s_own_class_comes_back_without_its_constructor() -> None:
    error = Refused(5, path=Path("/x"))
    back = restore_error(_stored(record_error(error)))
    assert isinstance(back, Refused)
    assert (back.code, back.path, str(back)) == (5, Path("/x"), "refused with 5 at /x")


def test_a_class_that_is_not_loaded_comes_back_as_the_nearest_that_is() -> None:
    class Slow(ToolTimeout):
        pass

    record = _stored(record_error(Slow("too late")))
    record["type"] = "gone:Slow.of.another.module"
    back = restore_error(record)
    assert type(back) is ToolTimeout
    assert str(back) == "too late"


def test_an_error_of_ours_comes_back_after_its_module_has_moved() -> None:
    record = _stored(record_error(NotKept("not kept")))
    record["type"] = "drawloom.before:NotKept"
    assert type(restore_error(record)) is NotKept
    record["type"] = "elsewhere:NotKept"  # another's, of the same name
    assert type(restore_error(record)) is ToolError


def test_what_an_error_holds_and_cannot_come_back_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ToolError("x", Foreign())
    error.body = Foreign()  # type: ignore[attr-defined]
    error.add_note("seen by three")
    back = restore_error(_stored(record_error(error)))
    assert type(back) is ToolError
    assert back.__notes__ == ["seen by three"]
    assert "body" in caplog.text


def test_errors_of_the_record_are_no_outcomes() -> None:
    for kind in TREE:
        lost = issubclass(kind, errors.StoreError | errors.ReplayMismatch)
        assert can_record(kind("x")) is not lost
    assert not can_record(asyncio.CancelledError())
    assert can_record(ValueError("x"))


@dataclass
class Finder:
    """Finds points; it is equal by value, so it has no hash."""

    x: int = 0

    async def __call__(self, y: int) -> list[Point]:
        return [Point(self.x)]


def _finds(x: int, y: int) -> list[Point]:
    """Find points."""
    return [Point(x)]


@pytest.mark.parametrize("fn", [_finds, partial(_finds, x=1), Finder()])
def test_whatever_can_be_a_tool_declares_its_result(fn: Any) -> None:
    found = [Point(1)]
    assert record_value(tool(fn), found)[1] == found
