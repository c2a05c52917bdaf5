"""A tool's JSON schema from its signature and docstring."""

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from drawloom.environments import Sandbox
from drawloom.errors import ConfigError, ToolError


class Signature:
    """The arguments a model may give to a function, as one pydantic model.

    Raises `ConfigError` when a parameter has no annotation or cannot be described in JSON.
    """

    def __init__(self, fn: Callable[..., Any], name: str) -> None:
        self.description, helps = _docstring(inspect.getdoc(fn) or "")
        hints = typing.get_type_hints(fn)
        fields: dict[str, Any] = {}
        self.wants_sandbox = False
        for index, (key, parameter) in enumerate(inspect.signature(fn).parameters.items()):
            if index == 0 and hints.get(key) is Sandbox:
                self.wants_sandbox = True
                continue
            if key not in hints:
                raise ConfigError(f"tool {name}: parameter {key!r} needs a type annotation")
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ConfigError(f"tool {name}: *{key} cannot be described to a model")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[key] = (hints[key], Field(default, description=helps.get(key)))
        config = ConfigDict(extra="forbid")
        try:
            self.model: type[BaseModel] = create_model(name, __config__=config, **fields)
            schema = self.model.model_json_schema()
        except Exception as error:
            raise ConfigError(f"tool {name}: its parameters have no JSON schema: {error}") from None
        self.parameters: dict[str, Any] = _without_titles(schema)
        self.parameters.pop("additionalProperties", None)
        self.parameters.pop("description", None)

    def validate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments as Python values. Raises `ToolError` with words for the model."""
        try:
            model = self.model.model_validate(arguments)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()
            )
            raise ToolError(f"invalid arguments: {problems}") from None
        return {key: getattr(model, key) for key in type(model).model_fields}


class Declared:
    """Arguments by a JSON schema that somebody else wrote, and checks; see `Signature`."""

    def __init__(self, description: str, schema: dict[str, Any], *, wants_sandbox: bool) -> None:
        self.description = " ".join(description.split())
        self.parameters: dict[str, Any] = {"type": "object", "properties": {}} | schema
        self.wants_sandbox = wants_sandbox

    def validate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Only that they are named as declared. Raises `ToolError` with words for the model."""
        known = self.parameters["properties"]
        missing = [name for name in self.parameters.get("required", ()) if name not in arguments]
        unknown = [name for name in arguments if name not in known]
        if missing or (unknown and self.parameters.get("additionalProperties") is False):
            problems = [f"{n}: Field required" for n in missing]
            problems += [f"{n}: there is no such argument" for n in unknown]
            raise ToolError(f"invalid arguments: {'; '.join(problems)}")
        return arguments


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its prose and the help of each parameter under ``Args:``."""
    prose, _, rest = text.partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", rest, maxsplit=1)[0]
    helps: dict[str, str] = {}
    for match in re.finditer(r"^\s+(\w+)(?:\s*\([^)]*\))?:\s*(.+(?:\n\s{8,}.+)*)", section, re.M):
        helps[match[1]] = " ".join(match[2].split())
    return " ".join(prose.split()), helps


def _without_titles(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: {k: _without_titles(v) for k, v in value.items()}
            if key in ("properties", "$defs")
            else _without_titles(value)
            for key, value in node.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_without_titles(item) for item in node] if isinstance(node, list) else node


__all__ = ["Declared", "Signature"]
