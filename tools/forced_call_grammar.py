"""Grammars that make a model call a tool: for required and forced tool choice."""

import json
from collections.abc import Callable
from typing import Any

from drawloom.errors import ConfigError
from drawloom.tools.closed_schemas import close_objects

_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MARKS = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "llama3_json": "<|python_tag|>"}
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def call_mark(format: str) -> str:
    """Return the text that calls begin with in a format; empty if they begin like an answer."""
    return _MARKS.get(format, "")


def call_grammar(
    format: str, tools: list[dict[str, Any]], several: bool, is_token: Callable[[str], bool]
) -> str:
    """Return a Lark grammar for llguidance: calls as a parser of this format reads them.

    Args:
        format: the name of the parser.
        tools: functions that may be called: name, parameters (a JSON schema, or None for none)
            and strict (whether a schema with what no grammar can hold is refused).
        several: more than one call may be made.
        is_token: tells whether a text is one token of the model's, which the grammar must then
            name as such.

    Raises:
        ConfigError: calls in this format cannot be forced.
    """

    def mark(text: str) -> str:
        return text if is_token(text) else json.dumps(text)

    key = "parameters" if format == "llama3_json" else "arguments"
    if format == "hermes":
        one = rf'{mark("<tool_call>")} "\n" call "\n" {mark("</tool_call>")}'
        rest = rf' ("\n" {one})*' if several else ""
        start = f"start: {one}{rest}"
    elif format == "llama3_json":
        rest = ' ("; " call)*' if several else ""
        start = f"start: call{rest}"
    elif format == "mistral":
        rest = ' (", " call)*' if several else ""
        begin = "<[TOOL_CALLS]>" if is_token("[TOOL_CALLS]") else '"[TOOL_CALLS]"'
        start = f'start: {begin} " [" call{rest} "]"'
    else:
        raise ConfigError(
            f"tool calls in the {format} format cannot be forced; use tool_choice auto"
        )
    return "\n".join([start, *_calls(tools, key)]) + "\n"


def _calls(tools: list[dict[str, Any]], key: str) -> list[str]:
    """Return the rules of a call.

    The schema of each tool's arguments is a grammar of its own, so that references in it
    (``#/$defs/Item``) resolve as in the tool's declaration.
    """
    lines = ["call: " + " | ".join(f"call{place}" for place in range(len(tools)))]
    for place, tool in enumerate(tools):
        head = f'{{"name": {json.dumps(tool["name"])}, "{key}": '
        schema = json.dumps(_arguments(tool))
        lines.append(f'call{place}: {json.dumps(head)} arguments{place} "}}"')
        lines.append(f"arguments{place}: %json {schema}")
    return lines


def _arguments(tool: dict[str, Any]) -> dict[str, Any]:
    schema = tool.get("parameters") or _NO_ARGUMENTS
    guidance = {**_SPACES, "lenient": not tool.get("strict")}
    return {**close_objects({**schema, "type": "object"}), "x-guidance": guidance}


__all__ = ["call_grammar", "call_mark"]
