"""Grammars that make a model call a tool: for required and forced tool choice."""

import json
from collections.abc import Callable
from typing import Any

from drawloom.errors import ConfigError

_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def call_grammar(
    format: str, tools: list[dict[str, Any]], several: bool, is_token: Callable[[str], bool]
) -> str:
    """Calls of any of these tools in the way that a parser of this name reads, as a Lark grammar
    for llguidance. `tools` are functions: name and parameters (a JSON schema); `is_token` says
    whether a mark is one token of the model's, which the grammar must then name as such.

    Raises `ConfigError` for a format that cannot be forced.
    """

    def mark(text: str) -> str:
        return text if is_token(text) else json.dumps(text)

    key = "parameters" if format == "llama3_json" else "arguments"
    call = f"%json {json.dumps({'anyOf': [_schema(t, key) for t in tools], 'x-guidance': _SPACES})}"
    if format == "hermes":
        one = rf'{mark("<tool_call>")} "\n" call "\n" {mark("</tool_call>")}'
        rest = rf' ("\n" {one})*' if several else ""
        return f"start: {one}{rest}\ncall: {call}\n"
    if format == "llama3_json":
        rest = ' ("; " call)*' if several else ""
        return f"start: call{rest}\ncall: {call}\n"
    if format == "mistral":
        rest = ' (", " call)*' if several else ""
        begin = "<[TOOL_CALLS]>" if is_token("[TOOL_CALLS]") else '"[TOOL_CALLS]"'
        return f'start: {begin} " [" call{rest} "]"\ncall: {call}\n'
    raise ConfigError(f"tool calls in the {format} format cannot be forced; use tool_choice auto")


def _schema(tool: dict[str, Any], key: str) -> dict[str, Any]:
    parameters = tool.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool["name"]}, key: parameters},
        "required": ["name", key],
        "additionalProperties": False,
    }


__all__ = ["call_grammar"]
