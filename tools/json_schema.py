"""A tool's JSON schema from its signature and docstring."""

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from drawloom.environments import Sandbox
from drawloom.errors import ConfigError, ToolError
from drawloom.tools.docstrings import parse_docstring
from drawloom.tools.typed_dicts import portable_hint

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=False, validate_default=False)


class _Schema(GenerateJsonSchema):
    """Leaves a default out in silence where JSON cannot hold it."""

    def emit_warning(self, kind: Any, detail: str) -> None: ...


class Signature:
    """Describe the arguments that a model may give to a function, as one pydantic model.

    A leading `self` is bound later (`is_method`); a leading `Sandbox` is the runtime's to give.
    Arguments that a `functools.partial` has set are not the model's to change.

    Raises `ConfigError` when a parameter has no annotation or cannot be described in JSON.
    """

    def __init__(self, fn: Callable[..., Any], name: str) -> None:
        self.description, helps = parse_docstring(inspect.getdoc(_documented(fn)) or "")
        self._parameters = _parameters(fn, name)
        hints = _hints(fn, name)
        first = next(iter(self._parameters.values()), None)
        self.is_method = first is not None and _is_self(first, hints)
        if self.is_method and first is not None:
            del self._parameters[first.name]
        first = next(iter(self._parameters.values()), None)
        self.wants_sandbox = first is not None and hints.get(first.name) is Sandbox
        if self.wants_sandbox and first is not None:
            del self._parameters[first.name]
        # fields are numbered: a parameter may be called `schema`, `model_config` or `_x`
        self._fields: dict[str, str] = {}
        fields: dict[str, Any] = {}
        for number, (key, parameter) in enumerate(self._parameters.items()):
            if key not in hints:
                raise ConfigError(f"tool {name}: parameter {key!r} needs a type annotation")
            hint = portable_hint(hints[key])
            fields[f"a{number}"] = _field(parameter, hint, helps.get(key))
            self._fields[f"a{number}"] = key
        try:
            self.model: type[BaseModel] = create_model(name, __config__=_CONFIG, **fields)
            schema = self.model.model_json_schema(schema_generator=_Schema)
        except Exception as error:
            raise ConfigError(f"tool {name}: its parameters have no JSON schema: {error}") from None
        self.parameters: dict[str, Any] = _without_titles(schema)
        self.parameters.pop("additionalProperties", None)
        self.parameters.pop("description", None)

    @property
    def names(self) -> list[str]:
        """Return the names of the arguments that a model may give, in order."""
        return list(self._fields.values())

    def validate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments as Python values, by parameter.

        Raises:
            ToolError: they do not fit; the message is for the model.
        """
        try:
            model = self.model.model_validate(arguments)
        except ValidationError as error:
            raise ToolError(f"invalid arguments: {describe_problems(error)}") from None
        except Exception as error:  # a validator of the user's own
            raise ToolError(f"invalid arguments: {type(error).__name__}: {error}") from None
        return {key: getattr(model, field) for field, key in self._fields.items()}

    def call(self, values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return validated values as the positional and the named arguments of a call."""
        named = dict(values)
        kinds = self._parameters.items()
        only = [key for key, p in kinds if p.kind is p.POSITIONAL_ONLY]
        return [named.pop(key) for key in only], named


class Declared:
    """Arguments by a JSON schema that somebody else wrote, and checks; see `Signature`."""

    is_method = False

    def __init__(self, description: str, schema: dict[str, Any], *, wants_sandbox: bool) -> None:
        self.description = " ".join(description.split())
        self.parameters: dict[str, Any] = {"type": "object", "properties": {}} | schema
        self.wants_sandbox = wants_sandbox

    @property
    def names(self) -> list[str]:
        return list(self.parameters["properties"])

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

    def call(self, values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        return [], values


def describe_problems(error: ValidationError) -> str:
    """Return what a validation found wrong, place by place, on one line."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()
    )


def underlying(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that a partial, a static method or a callable object calls."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, (staticmethod, classmethod)):
        return underlying(fn.__func__)
    if inspect.isroutine(fn) or inspect.isclass(fn):
        return fn
    return underlying(type(fn).__call__) if callable(fn) else fn


def type_hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function with their metadata.

    Names are also looked up where the function was defined, up the stack.

    Raises:
        NameError: a name is not found.
    """
    function = underlying(fn)
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            try:
                return typing.get_type_hints(function, None, frame.f_locals, include_extras=True)
            except NameError:
                frame = frame.f_back
        raise error


def _documented(fn: Callable[..., Any]) -> Any:
    """Return what carries the docstring: of a callable object its `__call__`, or its class."""
    function = underlying(fn)
    return function if inspect.getdoc(function) else fn


def _parameters(fn: Callable[..., Any], name: str) -> dict[str, inspect.Parameter]:
    try:
        found = dict(inspect.signature(fn).parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"tool {name}: its signature cannot be read: {error}") from None
    for key, parameter in found.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"tool {name}: *{key} cannot be described to a model")
    while isinstance(fn, functools.partial):
        found = {key: p for key, p in found.items() if key not in fn.keywords}
        fn = fn.func
    return found


def _hints(fn: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return type_hints(fn)
    except Exception as error:  # annotations are evaluated: anything may come
        raise ConfigError(f"tool {name}: an annotation cannot be read: {error}") from None


def _is_self(parameter: inspect.Parameter, hints: dict[str, Any]) -> bool:
    """Return whether a function was written as a method and is not bound yet."""
    return parameter.name in ("self", "cls") and parameter.name not in hints


def _field(parameter: inspect.Parameter, hint: Any, help: str | None) -> tuple[Any, Any]:
    """Return the pydantic field of a parameter; what its author put into `Field` comes first."""
    default = parameter.default
    if isinstance(default, FieldInfo):
        hint = Annotated[hint, default]
        options = {} if default.is_required() else _default_of(default)
    elif default is parameter.empty:
        options = {}
    else:
        hint = hint | None if default is None and isinstance(hint, type) else hint
        options = {"default": default}
    given = FieldInfo.from_annotation(hint)
    if help is not None and not given.description:
        options["description"] = help
    return hint, Field(alias=parameter.name, **options)


def _default_of(field: FieldInfo) -> dict[str, Any]:
    if field.default_factory is not None:
        return {"default_factory": field.default_factory}
    return {"default": field.default}


def _without_titles(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: {k: _without_titles(v) for k, v in value.items()}
            if key in ("properties", "$defs") and isinstance(value, dict)
            else _without_titles(value)
            for key, value in node.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_without_titles(item) for item in node] if isinstance(node, list) else node


__all__ = ["Declared", "Signature", "describe_problems", "type_hints", "underlying"]
