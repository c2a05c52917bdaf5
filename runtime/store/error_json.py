"""Errors of steps as JSON, and back as errors of the same class, words and attributes.

Classes are looked for among those that are loaded: drawloom's own, what was derived from them, and
Python's. One that is not there any more comes back as the nearest of drawloom's that it was.
"""

import builtins
import logging
from collections.abc import Iterator
from typing import Any

from drawloom import errors
from drawloom.errors import DrawloomError
from drawloom.runtime.store.result_json import NotKept, decode, encode

log = logging.getLogger("drawloom.runtime")


def can_record(error: BaseException) -> bool:
    """Return whether an error is a step's outcome that can be restored as its own class."""
    if isinstance(error, errors.StoreError | errors.ReplayMismatch):
        return False  # of the record itself, not of the step
    return isinstance(error, DrawloomError) or _builtin(type(error).__name__) is type(error)


def record_error(error: BaseException) -> dict[str, Any]:
    """Make JSON of an error; attributes that JSON cannot hold are left out with a warning."""
    kind = type(error)
    bases = [b.__name__ for b in kind.__mro__ if getattr(errors, b.__name__, None) is b]
    attributes = {name: _try(error, name, value) for name, value in vars(error).items()}
    try:
        arguments = encode(list(error.args))
    except NotKept:
        arguments = [str(error)]
    return {
        "type": f"{kind.__module__}:{kind.__qualname__}",
        "base": bases[0] if bases else "",
        "args": arguments,
        "state": {name: value for name, value in attributes.items() if value is not _LOST},
        "text": encode(str(error)),
    }


_LOST = object()


def _try(error: BaseException, name: str, value: Any) -> Any:
    try:
        return encode(value)
    except NotKept:
        log.warning("%s: its attribute %s is not recorded", type(error).__name__, name)
        return _LOST


def restore_error(record: dict[str, Any]) -> Exception:
    """Restore an error from its record, without running code of its class."""
    text, arguments = decode(record["text"]), decode(record["args"])
    kind = _find(record["type"])
    made = _make(kind, arguments) if kind is not None else None
    if made is None:
        base = getattr(errors, record["base"], DrawloomError)
        made = _make(base, [text]) or DrawloomError(text)
    vars(made).update(decode(record["state"]))
    return made


def _make(kind: type[Exception], arguments: list[Any]) -> Exception | None:
    try:
        made = Exception.__new__(kind, *arguments)
    except TypeError:  # it is also of a class of C with a layout of its own
        made = None
    if made is not None:
        made.args = tuple(arguments)
    return made


def _find(name: str) -> type[Exception] | None:
    """Return the error class of a recorded name, if it is loaded.

    Its module may have another name now: it ran as a script then, or drawloom has moved it since.
    """
    module, _, qualname = name.partition(":")
    if module == "builtins":
        return _builtin(qualname)
    loaded = [kind for kind in _derived(DrawloomError) if kind.__qualname__ == qualname]
    exact = [kind for kind in loaded if kind.__module__ == module]
    if exact:
        return exact[-1]
    if len(loaded) != 1:
        return None
    return loaded[0] if _is_ours(module) == _is_ours(loaded[0].__module__) else None


def _is_ours(module: str) -> bool:
    return module.startswith("drawloom.")


def _builtin(name: str) -> type[Exception] | None:
    kind = getattr(builtins, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        return None
    return None if issubclass(kind, OSError | ExceptionGroup) else kind


def _derived(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _derived(child)


__all__ = ["can_record", "record_error", "restore_error"]
