"""Closing the objects of JSON schemas that models are made to follow.

A schema that lists an object's properties and says nothing of others allows any other. A weak model
then writes invented ones until its tokens are spent. What OpenAI's strict mode asks authors for is
done here for them: such an object has its listed properties and no others.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE = ("items", "additionalProperties", "contains", "propertyNames", "unevaluatedItems")
_JOINED = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if")
_CONDITIONS = ("not", "if", "then", "else", "dependentSchemas")
_OTHERS = ("additionalProperties", "patternProperties", "unevaluatedProperties")

Visit = Callable[[dict[str, Any], bool], None]


def close_objects(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have only the properties that it lists.

    What the result accepts, the given schema accepts too (of ``oneOf``: what one choice lists).
    Objects stay open whose schema says anything of other properties, or is combined with another
    one (``allOf``, conditions, properties next to a reference): one part does not know the
    properties of the others.
    """
    joined: set[str] = set()

    def collect(node: dict[str, Any], combined: bool) -> None:
        if combined and isinstance(ref := node.get("$ref"), str):
            joined.add(ref)
        for key in _CONDITIONS:
            joined.update(_references(node.get(key)))

    known = -1
    while known < len(joined):  # what a combined schema refers to is combined as well
        known = len(joined)
        _walk(schema, "#" in joined, joined, collect)
    defined = {f"#/{key}/{name}" for key in ("$defs", "definitions") for name in _map(schema, key)}
    if not joined <= defined | {"#"}:
        return schema
    result: dict[str, Any] = json.loads(json.dumps(schema))  # no part of it is in two places
    _walk(result, "#" in joined, joined, _close)
    return result


def _close(node: dict[str, Any], combined: bool) -> None:
    if "properties" in node and not combined and not any(key in node for key in _OTHERS):
        node["additionalProperties"] = False


def _walk(node: Any, combined: bool, joined: set[str], visit: Visit) -> None:
    """Visit a schema and those in it, except conditions.

    The visitor is told of each whether other schemas apply to the same value.
    """
    if not isinstance(node, dict):
        return
    parts = sum(key in node for key in _JOINED) + any(
        key in node for key in ("properties", *_OTHERS)
    )
    combined = combined or parts > 1
    visit(node, combined)
    for key in _NAMED:
        for name, child in list(_map(node, key).items()):
            _walk(child, f"#/{key}/{name}" in joined, joined, visit)
    for key in _SINGLE:
        _walk(node.get(key), False, joined, visit)
    for child in _list(node, "prefixItems"):
        _walk(child, False, joined, visit)
    for key in ("allOf", "anyOf", "oneOf"):
        children = list(_list(node, key))
        for child in children:
            _walk(child, combined or (key == "allOf" and len(children) > 1), joined, visit)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(ref := value.get("$ref"), str):
            yield ref
        value = list(value.values())
    for child in value if isinstance(value, list) else ():
        yield from _references(child)


def _map(node: dict[str, Any], key: str) -> dict[str, Any]:
    value = node.get(key)
    return value if isinstance(value, dict) else {}


def _list(node: dict[str, Any], key: str) -> Iterator[Any]:
    value = node.get(key)
    yield from value if isinstance(value, list) else ()


__all__ = ["close_objects"]
