"""Results of steps as JSON, and back as equal values.

Everything in the standard scalar and container types comes back as it was. Of other classes only
those come back that the tool's return annotation names (dataclasses, pydantic models, enumerations,
named tuples); nothing is imported and no code of theirs runs. What cannot come back is refused when
it is recorded, so that code never sees a result that a resumed program would not see.
"""

import base64
import dataclasses
import json
import types
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

from pydantic import BaseModel, RootModel
from pydantic_core import PydanticSerializationError, PydanticUndefined, to_jsonable_python

from drawloom.errors import ToolError
from drawloom.runtime.store.declared_classes import Classes, is_record

TAG = "$"


class NotKept(ToolError):
    """Refuse a result of a class that its tool's return annotation does not name."""


# --- values to JSON -------------------------------------------------------------------------


def encode(value: Any, classes: Classes = types.MappingProxyType({})) -> Any:
    """Make JSON of a value.

    Args:
        value: what a step returned.
        classes: those that may come back besides the standard ones.

    Raises: `NotKept` for a class that is not among them.
    """
    names = {kind: name for name, kind in classes.items()}
    try:
        return _encode(value, names.get)
    except RecursionError:
        raise NotKept(
            "its result is nested too deeply or holds itself: return a flat one"
        ) from None
    except (AttributeError, KeyError) as error:
        raise NotKept(f"its result has a field that was never set: {error}") from None


def describe(value: Any) -> Any:
    """Make JSON of any value, so that equal ones look equal; it does not come back."""
    try:
        return _encode(value, lambda kind: f"{kind.__module__}:{kind.__qualname__}")
    except (NotKept, RecursionError, AttributeError):
        if isinstance(value, dict):
            return {str(name): describe(item) for name, item in value.items()}
        return {TAG: "object", "v": type(value).__qualname__}


def result_json(value: Any) -> Any:
    """Make JSON of a program's result for people to read, whatever it is."""
    try:
        return to_jsonable_python(value, fallback=str, bytes_mode="base64")
    except (PydanticSerializationError, ValueError, RecursionError):
        return repr(value)


def _encode(value: Any, name_of: Callable[[type], str | None]) -> Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if (name := name_of(kind)) is not None and is_record(kind):
        return _encode_record(value, name, name_of)
    for base, encoder in _ENCODERS:
        if isinstance(value, base) and not is_record(kind):
            return encoder(value, lambda item: _encode(item, name_of))
    raise NotKept(
        f"its result holds a {kind.__qualname__}, which cannot come back in a resumed program: "
        + (
            f"name it in the return annotation, -> {kind.__qualname__}"
            if is_record(kind)
            else "return JSON types, bytes, dataclasses or pydantic models"
        )
    )


def _encode_record(value: Any, name: str, name_of: Callable[[type], str | None]) -> Any:
    kind = type(value)
    if isinstance(value, Enum):
        if value._name_ in kind.__members__:
            return {TAG: "enum", "of": name, "v": value._name_}
        return {TAG: "flags", "of": name, "v": value.value}
    if isinstance(value, BaseModel):
        fields = {field: value.__dict__[field] for field in kind.model_fields}
        private = value.__pydantic_private__ or {}
        private = {n: v for n, v in private.items() if v is not PydanticUndefined}
        rest = [value.__pydantic_extra__, private or None]
        marks = sorted(value.__pydantic_fields_set__)
        return {TAG: "model", "of": name, "v": _encode([fields, rest, marks], name_of)}
    if isinstance(value, tuple):
        return {TAG: "named", "of": name, "v": [_encode(item, name_of) for item in value]}
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {TAG: "data", "of": name, "v": _encode(fields, name_of)}


Inner = Callable[[Any], Any]


def _encode_str(value: str, inner: Inner) -> Any:
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:  # two halves beside each other would come back as one letter
        return {TAG: "str", "v": _base64(text.encode("utf-8", "surrogatepass"))}
    return text


def _encode_int(value: int, inner: Inner) -> Any:
    number = int(value)
    return number if number.bit_length() < 64 else {TAG: "int", "v": hex(number)}


def _encode_float(value: float, inner: Inner) -> Any:
    number = float(value)
    return number if number - number == 0.0 else {TAG: "float", "v": repr(number)}


def _encode_dict(value: dict[Any, Any], inner: Inner) -> Any:
    if TAG not in value and all(type(key) is str and key.isascii() for key in value):
        return {key: inner(item) for key, item in value.items()}
    return {TAG: "dict", "v": [[inner(key), inner(item)] for key, item in value.items()]}


def _encode_set(value: Any, inner: Inner) -> Any:
    items = sorted((inner(item) for item in value), key=lambda item: json.dumps(item))
    return {TAG: "set" if isinstance(value, set) else "frozenset", "v": items}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _as_text(tag: str, text: Callable[[Any], str] = str) -> Callable[[Any, Inner], Any]:
    return lambda value, inner: {TAG: tag, "v": text(value)}


_ENCODERS: list[tuple[Any, Callable[[Any, Inner], Any]]] = [
    (str, _encode_str),
    (int, _encode_int),
    (float, _encode_float),
    (list, lambda value, inner: [inner(item) for item in value]),
    (dict, _encode_dict),
    (tuple, lambda value, inner: {TAG: "tuple", "v": [inner(item) for item in value]}),
    (set | frozenset, _encode_set),
    (bytearray, _as_text("bytearray", _base64)),
    (bytes | memoryview, _as_text("bytes", _base64)),
    (complex, lambda value, inner: {TAG: "complex", "v": [inner(value.real), inner(value.imag)]}),
    (datetime, _as_text("datetime", datetime.isoformat)),
    (date, _as_text("date", date.isoformat)),
    (time, _as_text("time", time.isoformat)),
    (timedelta, lambda v, inner: {TAG: "timedelta", "v": [v.days, v.seconds, v.microseconds]}),
    (Decimal, _as_text("decimal")),
    (UUID, _as_text("uuid")),
    (PurePosixPath, lambda value, inner: {TAG: "path", "v": inner(str(value))}),
]


# --- and back -------------------------------------------------------------------------------


def decode(data: Any, classes: Classes = types.MappingProxyType({})) -> Any:
    """Restore a value from JSON.

    Raises:
        ValueError: a class of it is not among `classes`, or was changed.
    """
    if isinstance(data, list):
        return [decode(item, classes) for item in data]
    if not isinstance(data, dict):
        return data
    if TAG not in data:
        return {key: decode(item, classes) for key, item in data.items()}
    tag, content = data[TAG], data["v"]
    if "of" in data:
        return _decode_record(data, classes)
    if tag not in _DECODERS:
        raise ValueError(f"nothing comes back of {tag} {content}")
    return _DECODERS[tag](content, lambda item: decode(item, classes))


def _decode_record(data: dict[str, Any], classes: Classes) -> Any:
    tag, name, content = data[TAG], data["of"], data["v"]
    kind: Any = classes.get(name)
    if kind is None:
        raise ValueError(f"it holds a {name}, which the tool no longer declares")
    if tag == "enum":
        if content not in kind.__members__:
            raise ValueError(f"{name} has no {content} any more")
        return kind[content]
    if tag == "flags":
        return kind(content)
    parts = decode(content, classes)
    if tag == "named":
        _check_fields(name, len(parts), len(kind._fields))
        return tuple.__new__(kind, parts)
    if tag == "model":
        return _decode_model(kind, name, *parts)
    fields = [field.name for field in dataclasses.fields(kind)]
    _check_fields(name, sorted(parts), sorted(fields))
    made = object.__new__(kind)
    for field in fields:
        object.__setattr__(made, field, parts[field])
    return made


def _decode_model(kind: Any, name: str, fields: Any, rest: Any, marks: list[str]) -> Any:
    _check_fields(name, sorted(fields), sorted(kind.model_fields))
    made = kind.__new__(kind)
    state = {"__dict__": fields, "__pydantic_fields_set__": set(marks)}
    if issubclass(kind, RootModel):
        RootModel.__setstate__(made, state)
    else:
        more = {"__pydantic_extra__": rest[0], "__pydantic_private__": rest[1]}
        BaseModel.__setstate__(made, state | more)
    return made


def _check_fields(name: str, recorded: Any, now: Any) -> None:
    if recorded != now:
        raise ValueError(f"{name} had the fields {recorded}, and now has {now}")


_DECODERS: dict[str, Callable[[Any, Inner], Any]] = {
    "str": lambda v, inner: base64.b64decode(v).decode("utf-8", "surrogatepass"),
    "int": lambda v, inner: int(v, 16),
    "float": lambda v, inner: float(v),
    "dict": lambda v, inner: {inner(key): inner(item) for key, item in v},
    "tuple": lambda v, inner: tuple(inner(item) for item in v),
    "set": lambda v, inner: {inner(item) for item in v},
    "frozenset": lambda v, inner: frozenset(inner(item) for item in v),
    "bytearray": lambda v, inner: bytearray(base64.b64decode(v)),
    "bytes": lambda v, inner: base64.b64decode(v),
    "complex": lambda v, inner: complex(inner(v[0]), inner(v[1])),
    "datetime": lambda v, inner: datetime.fromisoformat(v),
    "date": lambda v, inner: date.fromisoformat(v),
    "time": lambda v, inner: time.fromisoformat(v),
    "timedelta": lambda v, inner: timedelta(*v),
    "decimal": lambda v, inner: Decimal(v),
    "uuid": lambda v, inner: UUID(v),
    "path": lambda v, inner: Path(inner(v)),
}


__all__ = ["NotKept", "decode", "describe", "encode", "result_json"]
