"""Arguments of a program, checked by the annotations of its agent."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from drawloom.errors import ConfigError
from drawloom.runtime.execution.agent import Agent
from drawloom.tools.json_schema import describe_problems, type_hints


def bind_arguments(
    agent: Agent[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a program's arguments, converted to the agent's annotations.

    JSON becomes the pydantic model or dataclass that is declared. A parameter without an
    annotation, or of a type unknown to pydantic, takes anything.

    Raises:
        ConfigError: the arguments do not fit.
    """
    try:
        signature = inspect.signature(agent.fn)
        bound = signature.bind(*args, **kwargs)
        hints = type_hints(agent.fn)
    except TypeError as error:
        raise ConfigError(f"agent {agent.name}: {error}") from None
    except (NameError, ValueError):  # a signature that cannot be read
        return tuple(args), dict(kwargs)
    for name, value in bound.arguments.items():
        if name not in hints:
            continue
        parameter, hint = signature.parameters[name], hints[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            bound.arguments[name] = tuple(_valid(agent, name, hint, item) for item in value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            named = {key: _valid(agent, key, hint, item) for key, item in value.items()}
            bound.arguments[name] = named
        else:
            bound.arguments[name] = _valid(agent, name, hint, value)
    return bound.args, bound.kwargs


def _valid(agent: Agent[..., Any], name: str, hint: Any, value: Any) -> Any:
    try:
        adapter = TypeAdapter(hint)
    except Exception:  # pydantic knows no schema of this type
        return value
    try:
        found = adapter.validate_python(value)
    except ValidationError as error:
        problem = describe_problems(error).removeprefix("arguments: ")
        raise ConfigError(f"agent {agent.name}: argument {name}={value!r:.80}: {problem}") from None
    # an argument that fits stays the object that it is, not a copy of it
    return value if type(found) is type(value) and repr(found) == repr(value) else found


__all__ = ["bind_arguments"]
