"""A tool's value as text that a model, JSON and every store can hold, cut to a size."""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

log = logging.getLogger("drawloom.tools")

MAX_CHARS = 1 << 20
"""Most characters of one result that are kept at all; a model is shown fewer, see `cut_tokens`."""
_DEPTH = 100
_CUT = "\n… {} characters cut …\n"
_EARLIER = re.compile(r"\n… (\d{1,18}) characters cut …\n")
_MISSING = "\N{REPLACEMENT CHARACTER}"
_CHARS_PER_TOKEN = 8  # longer tokens are rare: beyond so many characters nothing need be counted


def render(value: Any) -> str:
    """Return a tool's value as valid text: a string as it is, anything else as JSON.

    Never raises: bytes that are not UTF-8, lone surrogates and NUL become U+FFFD, and what JSON
    cannot hold (NaN, a cycle, an object of any class) its description.
    """
    if isinstance(value, str):
        return valid_text(str.__str__(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bytes_text(bytes(value))
    try:
        if isinstance(value, BaseModel):
            return valid_text(value.model_dump_json())
        return valid_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except Exception:  # also of a serializer of the user's own
        plain = jsonable(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def valid_text(text: str) -> str:
    """Return `text` as valid UTF-8 text.

    Surrogate pairs are joined; lone surrogates and NUL, which PostgreSQL refuses, become U+FFFD.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", _MISSING)


def jsonable(value: Any) -> Any:
    """Convert `value` to JSON types with valid text and finite numbers; never raise."""
    return _plain(value, ())


def recordable(value: Any) -> Any:
    """Convert `value` to JSON from which its type can be validated again.

    Where that is not JSON or not valid text, return what `jsonable` returns.
    """
    try:
        plain = to_jsonable_python(value, fallback=_text_of)
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
        text.encode()
    except Exception:  # also of a serializer of the user's own
        return jsonable(value)
    return jsonable(value) if "\\u0000" in text else plain


def describe_error(error: BaseException) -> str:
    """Return an exception as one text for a model: its type and its message, if it has one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    words = _text_of(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def cut_chars(text: str, limit: int) -> str:
    """Truncate `text` in the middle to `limit` characters, with a note of how much was cut."""
    if len(text) <= limit:
        return text
    head = limit // 2
    return _cut(text, head, limit - head)


def cut_tokens(text: str, limit: int, count: Callable[[str], int]) -> str:
    """Return `text` cut to about `limit` tokens as `count` counts them, both ends kept.

    Args:
        text: any text; only as much of it is counted as may stay.
        limit: most tokens that stay; the note in the middle is beyond it.
        count: the tokens of a text.
    """
    if len(text) <= limit and len(text.encode()) <= limit:  # no token is shorter than a byte
        return text
    if len(text) <= limit * _CHARS_PER_TOKEN and count(text) <= limit:
        return text
    head = _fitting(limit // 2, len(text) // 2, lambda size: count(text[:size]))
    rest = len(text) - head
    tail = _fitting(limit - limit // 2, rest, lambda size: count(text[len(text) - size :]))
    return _cut(text, head, tail)


def _fitting(limit: int, longest: int, count: Callable[[int], int]) -> int:
    """Return a number of characters, at most `longest`, that have at most `limit` tokens."""
    size = min(longest, limit * _CHARS_PER_TOKEN)
    while size > 0 and (found := count(size)) > limit:
        size = min(size - 1, size * limit * 15 // (found * 16))
    return size


def _cut(text: str, head: int, tail: int) -> str:
    gone = text[head : len(text) - tail]
    left_out = len(gone)
    for earlier in _EARLIER.finditer(gone):  # it was cut before: count what that left out
        left_out += int(earlier[1]) - len(earlier[0])
    return text[:head] + _CUT.format(left_out) + text[len(text) - tail :]


def _bytes_text(data: bytes) -> str:
    try:
        return valid_text(data.decode())
    except UnicodeDecodeError:
        note = f"[{len(data)} bytes that are not UTF-8; {_MISSING} stands for what is not text]\n"
        return note + valid_text(data.decode(errors="replace"))


def _plain(value: Any, around: tuple[int, ...]) -> Any:
    """`around`: the containers that this value is in, so that a cycle ends."""
    if value is None or value.__class__ in (bool, int):
        return value if value is None or abs(value) < 1 << 1024 else hex(value)
    if isinstance(value, float):
        return float(value) if value - value == 0 else str(float(value))
    if value.__class__ is str:
        return valid_text(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bytes_text(bytes(value))
    if id(value) in around:
        return "[this value contains itself]"
    if len(around) > _DEPTH:
        return "[too many levels]"
    try:
        return _inner(value, (*around, id(value)))
    except Exception as error:  # an object may do anything when it is looked at
        log.debug("a %s has no JSON form: %s", type(value).__name__, describe_error(error))
        return _text_of(value)


def _inner(value: Any, around: tuple[int, ...]) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value, around)
    if isinstance(value, Iterator):  # it may have no end
        return _text_of(value)
    if isinstance(value, BaseModel):
        value = value.model_dump()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(k): _plain(v, around) for k, v in value.items()}
    if isinstance(value, AbstractSet):
        return sorted((_plain(item, around) for item in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [_plain(item, around) for item in value]
    if isinstance(value, BaseException):
        return valid_text(describe_error(value))
    if callable(listed := getattr(value, "tolist", None)):  # arrays and tensors
        return _plain(listed(), around)
    found = to_jsonable_python(value, fallback=_text_of, inf_nan_mode="strings")
    return _plain(found, around)


def _key(key: Any) -> str:
    if key is None or isinstance(key, bool):
        return json.dumps(key)
    return valid_text(key) if isinstance(key, str) else str(_plain(key, ()))


def _text_of(value: Any) -> str:
    try:
        return valid_text(str(value))
    except BaseException:  # its own __str__ failed
        return f"<{type(value).__name__}>"


__all__ = [
    "MAX_CHARS",
    "cut_chars",
    "cut_tokens",
    "describe_error",
    "jsonable",
    "recordable",
    "render",
    "valid_text",
]
