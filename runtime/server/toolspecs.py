"""Tools of a chat request, and `tool_choice`: which tools may or must be called."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from drawloom.runtime.server.bounds import MOST_TOOLS, Flag
from drawloom.runtime.server.errors import HttpError

_LONGEST = 64
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class RequestPart(BaseModel):
    """Parse a part of a request; unknown fields are ignored, as clients expect."""

    model_config = ConfigDict(extra="ignore")


def _tool_name(name: str) -> str:
    if not (0 < len(name) <= _LONGEST and _NAME_CHARACTERS.issuperset(name)):
        raise ValueError(f"Input should be 1 to {_LONGEST} ASCII letters, digits, _ and -")
    return name


def _describes_object(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ValueError(f"Input should be a JSON schema of type object, not {kind!r}")
    return schema


ToolName = Annotated[
    str,
    AfterValidator(_tool_name),
    Field(json_schema_extra={"minLength": 1, "maxLength": _LONGEST, "pattern": "^[a-zA-Z0-9_-]+$"}),
]
Parameters = Annotated[
    dict[str, Any],
    AfterValidator(_describes_object),
    Field(json_schema_extra={"properties": {"type": {"const": "object"}}}),
]


class FunctionSpec(RequestPart):
    name: ToolName
    description: str | None = None
    parameters: Parameters | None = None
    strict: Flag | None = None


class ToolSpec(RequestPart):
    type: Literal["function"] = "function"
    function: FunctionSpec

    def schema_for_model(self) -> dict[str, Any]:
        """Return the tool for chat templates."""
        spec = self.function
        shown = {
            "name": spec.name,
            "description": spec.description or "",
            "parameters": spec.parameters or {},
        }
        return {"type": "function", "function": shown}


class NamedFunction(RequestPart):
    name: ToolName


class ToolChoice(RequestPart):
    """Name one function: one that must be called, or one of those allowed."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(RequestPart):
    mode: Literal["auto", "required"]
    tools: list[ToolChoice] = Field(min_length=1, max_length=MOST_TOOLS)


class AllowedToolsChoice(RequestPart):
    """Restrict the model to some of the offered functions."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


AnyToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[ToolChoice | AllowedToolsChoice, Field(discriminator="type")]
)


@dataclass(frozen=True, slots=True)
class Calls:
    """Say which calls an answer may make.

    Attributes:
        tools: tools that it may call; empty if it must be text.
        required: it must call one of them.
        several: it may make more than one call.
    """

    tools: list[ToolSpec]
    required: bool
    several: bool


def calls_of(
    tools: list[ToolSpec] | None, choice: AnyToolChoice | None, parallel: bool | None
) -> Calls:
    """Return the calls that a request allows.

    Args:
        tools: all offered tools. The prompt shows all of them, whatever the choice is, so that the
            prefix of a conversation does not change.
        choice: `tool_choice`.
        parallel: `parallel_tool_calls`.

    Raises:
        HttpError: a named tool is not offered, or a call is required without tools.
    """
    tools, several = tools or [], parallel is not False
    if choice in (None, "none", "auto"):
        return Calls([] if choice == "none" else tools, False, several)
    if choice == "required":
        if not tools:
            raise HttpError(400, "tool_choice: required needs tools", param="tool_choice")
        return Calls(tools, True, several)
    if isinstance(choice, ToolChoice):
        return Calls(_named(tools, [choice]), True, False)
    assert isinstance(choice, AllowedToolsChoice)
    allowed = choice.allowed_tools
    return Calls(_named(tools, allowed.tools), allowed.mode == "required", several)


def _named(tools: list[ToolSpec], choices: list[ToolChoice]) -> list[ToolSpec]:
    wanted = {choice.function.name for choice in choices}
    if missing := wanted - {tool.function.name for tool in tools}:
        raise HttpError(
            400, f"tool_choice: there is no tool {min(missing)!r} in tools", param="tool_choice"
        )
    return [tool for tool in tools if tool.function.name in wanted]


__all__ = [
    "AllowedToolsChoice",
    "AnyToolChoice",
    "Calls",
    "FunctionSpec",
    "RequestPart",
    "ToolChoice",
    "ToolSpec",
    "calls_of",
]
