"""The classes that a function declares, of which values may come back from the store."""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel

from drawloom.environments import ExecResult, ServiceState
from drawloom.tools.json_schema import underlying

Classes = Mapping[str, type]


def declared_classes(fn: Callable[..., Any]) -> Classes:
    """Find the classes that a function's return annotation names, however deep, by name."""
    return _returned_classes(underlying(fn))


@functools.lru_cache(maxsize=1024)
def _returned_classes(function: Callable[..., Any]) -> Classes:
    return classes_in([_hints(function).get("return", Any)])


def argument_classes(fn: Callable[..., Any]) -> Classes:
    """Find the classes that the annotations of a function's parameters name, by name."""
    return classes_in([hint for name, hint in _hints(underlying(fn)).items() if name != "return"])


def _hints(fn: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(fn, include_extras=True)
    except (NameError, TypeError, AttributeError):  # a name that only type checkers see
        return {}


def classes_in(hints: Iterable[Any]) -> Classes:
    """Find the classes that annotations name, however deep, by name."""
    found: dict[type, None] = {ExecResult: None, ServiceState: None}
    waiting, seen = list(hints), set[int]()
    while waiting:
        hint = waiting.pop()
        if id(hint) in seen:
            continue
        seen.add(id(hint))
        waiting += _parts(hint)
        if isinstance(hint, type) and is_record(hint):
            found[hint] = None
    return _named(found)


def _named(found: Iterable[type]) -> Classes:
    names: dict[str, type] = {}
    for kind in found:
        short = kind.__qualname__
        names[f"{kind.__module__}:{short}" if short in names else short] = kind
    return names


def is_record(kind: type) -> bool:
    """Return whether a class is a record: restored only where it is declared."""
    named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel | Enum) or named_tuple


def _parts(hint: Any) -> list[Any]:
    """Return the annotations that an annotation consists of."""
    if isinstance(hint, typing.TypeVar):
        return [*hint.__constraints__, hint.__bound__]
    for name in ("__value__", "__supertype__"):  # an alias, a NewType
        if not isinstance(hint, type) and (inner := getattr(hint, name, None)) is not None:
            return [inner]
    if (origin := typing.get_origin(hint)) is not None:
        arguments = typing.get_args(hint)
        if origin is typing.Literal:
            return [type(value) for value in arguments]
        return [*arguments, origin]
    if not isinstance(hint, type) or isinstance(hint, types.GenericAlias):
        return []
    if issubclass(hint, BaseModel):
        return [field.annotation for field in hint.model_fields.values()]
    if dataclasses.is_dataclass(hint) or hasattr(hint, "__annotations__"):
        return list(_hints(hint).values())
    return []


__all__ = ["Classes", "argument_classes", "classes_in", "declared_classes", "is_record"]
