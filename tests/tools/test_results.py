"""Any value a tool may return becomes text that a model, JSON and a store can hold."""

import dataclasses
import datetime
import enum
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from drawloom.tools.results import cut_chars, cut_tokens, jsonable, recordable, render


class Colour(enum.Enum):
    RED = b"\xff"


class Model(BaseModel):
    data: Any


@dataclasses.dataclass
class Data:
    inner: Any


class Broken:
    def __str__(self) -> str:
        raise SystemExit(1)


def _cycle() -> list[Any]:
    found: list[Any] = []
    found.append({"again": found})
    return found


def _deep() -> Any:
    found: Any = None
    for _ in range(50_000):
        found = [found]
    return found


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.datetimes()
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers()
    | st.sampled_from([Colour.RED, Broken(), object, print, iter(range(3)), ValueError()])
    | st.builds(_cycle)
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(st.characters(codec=None)) | st.integers(), inner, max_size=3)
        | st.builds(Model, data=inner)
        | st.builds(Data, inner)
    ),
    max_leaves=8,
)


@given(_VALUES)
def test_any_value_becomes_valid_text_and_valid_json(value: Any) -> None:
    text = render(value)
    assert "\0" not in text.encode().decode()
    for plain in (jsonable(value), recordable(value)):
        stored = json.dumps(plain, allow_nan=False, ensure_ascii=False)
        assert "\\u0000" not in stored.encode().decode()
        assert json.loads(stored) == plain


def test_no_number_is_too_long() -> None:
    assert render({"n": 10**5000}).startswith('{"n": "0x')


def test_no_nesting_is_too_deep() -> None:
    assert render(_deep()).startswith("[[[")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("héllo", "héllo"),
        ("\ud83d\ude00 \ud800 \0", "😀 \ufffd \ufffd"),
        (b"text", "text"),
        (float("nan"), "nan"),
        ({"a": float("inf")}, '{"a": "inf"}'),
        ({3, 1, 2}, "[1, 2, 3]"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (Data(Model(data=[b"x"])), '{"inner": {"data": ["x"]}}'),
        (None, "null"),
    ],
)
def test_values_are_what_a_model_would_expect(value: Any, text: str) -> None:
    assert render(value) == text


def test_bytes_that_are_no_text_say_so() -> None:
    assert render(b"\xff\xfe\x00").startswith("[3 bytes that are not UTF-8")


def test_what_can_be_validated_again_is_recorded_as_it_is() -> None:
    day = datetime.datetime(2020, 1, 2, 3, 4, 5)
    assert recordable({"a": [Model(data=day)]}) == {"a": [{"data": "2020-01-02T03:04:05"}]}


def _words(text: str) -> int:
    return len(re.findall(r"\w+|\W", text))


@given(st.text(max_size=300), st.integers(1, 50))
def test_a_cut_keeps_both_ends_within_the_limit_and_counts_what_is_gone(
    text: str, limit: int
) -> None:
    for cut, size in ((cut_chars(text, limit), len), (cut_tokens(text, limit, _words), _words)):
        if cut == text:
            assert size(text) <= limit or len(text.encode()) <= limit
            continue
        head, gone, tail = re.split(r"\n… (\d+) characters cut …\n", cut)
        assert text.startswith(head) and text.endswith(tail)
        assert len(head) + len(tail) + int(gone) == len(text)
        assert size(head) + size(tail) <= limit + (size is _words)


def test_a_second_cut_counts_what_the_first_left_out() -> None:
    once = cut_chars("x" * 10_000, 1000)
    assert re.findall(r"… (\d+) characters", cut_chars(once, 100)) == ["9900"]
