"""Registration of methods as handlers of one type of event or action."""

from collections.abc import Callable
from typing import Any, TypeVar

_ATTRIBUTE = "handled_type"
Method = TypeVar("Method", bound=Callable[..., Any])


def handles(kind: type) -> Callable[[Method], Method]:
    """Mark a method as the handler of `kind`; `handler_table` finds it."""

    def mark(method: Method) -> Method:
        setattr(method, _ATTRIBUTE, kind)
        return method

    return mark


def handler_table(*owners: object) -> dict[type, Callable[..., Any]]:
    """Return the marked methods of all owners by the type that they handle."""
    table: dict[type, Callable[..., Any]] = {}
    for owner in owners:
        for name in dir(type(owner)):
            kind = getattr(getattr(type(owner), name), _ATTRIBUTE, None)
            if kind is not None:
                assert kind not in table, f"{kind.__name__} has two handlers"
                table[kind] = getattr(owner, name)
    return table


__all__ = ["handler_table", "handles"]
