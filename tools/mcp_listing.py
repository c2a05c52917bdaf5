"""Checks of an MCP server's list of tools, tool by tool."""

import logging
from collections.abc import Sequence
from typing import Any

log = logging.getLogger("drawloom.tools")


def usable_tools(listed: Sequence[Any], server: str) -> list[dict[str, Any]]:
    """Return the tools that a model can be offered; warn of each of the others.

    Args:
        listed: the `tools` of a server's answer, whatever they are.
        server: the server, for the warnings.
    """
    found: list[dict[str, Any]] = []
    for tool in listed:
        problem = _problem(tool)
        if problem is None and any(tool["name"] == other["name"] for other in found):
            problem = "another tool of the server has this name"
        if problem is None:
            found.append(_tidy(tool))
        else:
            name = tool.get("name") if isinstance(tool, dict) else tool
            log.warning("MCP server %s: tool %.80r is left out: %s", server, name, problem)
    return found


def _problem(tool: Any) -> str | None:
    """Return why a tool cannot be offered, or None."""
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or not tool["name"]:
        return "it has no name"
    schema = tool.get("inputSchema")
    if not isinstance(schema, dict):
        return "its inputSchema is no object"
    if schema.get("type") != "object":
        return "its inputSchema does not have type 'object'"
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        return "the properties of its inputSchema are no object"
    if not all(isinstance(schema, (dict, bool)) for schema in properties.values()):
        return "a property of its inputSchema is no schema"
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        return "the required of its inputSchema is no list of names"
    return _schema_problem(schema)


def _schema_problem(schema: dict[str, Any]) -> str | None:
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError
    except ImportError:  # it comes with the extra `mcp`
        return None
    try:
        Draft202012Validator.check_schema({k: v for k, v in schema.items() if k != "$schema"})
    except SchemaError as error:
        return f"its inputSchema is no JSON schema (2020-12): {error.message}"
    except RecursionError:
        return "its inputSchema is nested too deeply"
    return None


def _tidy(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool without what is not understood and not needed."""
    schema = {key: value for key, value in tool["inputSchema"].items() if key != "$schema"}
    tidied = tool | {"inputSchema": schema}
    if not isinstance(tool.get("description"), str):
        tidied.pop("description", None)
    output = tool.get("outputSchema")
    if not isinstance(output, dict) or output.get("type") != "object":
        tidied.pop("outputSchema", None)
    if not isinstance(tool.get("annotations"), dict):
        tidied.pop("annotations", None)
    return tidied


__all__ = ["usable_tools"]
