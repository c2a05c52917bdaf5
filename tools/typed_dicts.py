"""`typing.TypedDict` in annotations, which pydantic takes from Python 3.12 on."""

import functools
import operator
import sys
import types
import typing
from typing import Annotated, Any

import typing_extensions

_MARKS = (typing.Required, typing.NotRequired)


def portable_hint(hint: Any) -> Any:
    """Replace every `typing.TypedDict` in an annotation by one of `typing_extensions`.

    Also within unions, lists and other generics. Before Python 3.12 pydantic knows only these.
    """
    if sys.version_info >= (3, 12):
        return hint
    if typing.is_typeddict(hint) and type(hint).__module__ == "typing":
        return _converted(hint)
    arguments = typing.get_args(hint)
    found = tuple(portable_hint(item) for item in arguments)
    if all(new is old for new, old in zip(found, arguments, strict=True)):
        return hint
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return Annotated[(found[0], *hint.__metadata__)]
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, found)
    return origin[found] if origin is not None else hint


def _converted(kind: Any) -> Any:
    fields: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        plain = typing.get_args(hint)[0] if typing.get_origin(hint) in _MARKS else hint
        inner = portable_hint(plain)
        fields[name] = inner if name in kind.__required_keys__ else typing.NotRequired[inner]
    make: Any = typing_extensions.TypedDict
    made = make(kind.__name__, fields)
    made.__doc__ = kind.__doc__
    return made


__all__ = ["portable_hint"]
