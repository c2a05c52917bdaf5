"""An MCP server without the SDK, so that it runs wherever Python does.

python mcp_server.py [crash|nonsense|silent|mute|odd|dies|stillborn]
"""

import json
import os
import sys

TOOLS = [
    {
        "name": "count-words",
        "description": "Count the words of a file.",
        "inputSchema": {
            "type": "object",
            "properties": {"path": {"type": "string"}},
            "required": ["path"],
            "additionalProperties": False,
        },
        "annotations": {"readOnlyHint": True, "idempotentHint": True},
    },
    {"name": "fail", "description": "", "inputSchema": {"type": "object"}},
    {"name": "picture", "description": "", "inputSchema": {"type": "object"}},
    {"name": "long", "description": "", "inputSchema": {"type": "object"}},
    {"name": "pid", "description": "", "inputSchema": {"type": "object"}},
]

_ARGUMENT = {"properties": {"a": {"type": "integer"}}}
ODD = {
    "anyof": {"anyOf": [{"type": "object"}, {"type": "null"}]},
    "no_type": _ARGUMENT,
    "types": {"type": ["object"], **_ARGUMENT},
    "null": None,
    "list": [],
    "text": "object",
    "property_list": {"type": "object", "properties": [{"name": "a"}]},
    "property_number": {"type": "object", "properties": {"a": 3}},
    "required_text": {"type": "object", "required": "a", **_ARGUMENT},
    "required_null": {"type": "object", "required": None},
    "bad_type": {"type": "object", "properties": {"a": {"type": "nosuch"}}},
    "bad_pattern": {"type": "object", "properties": {"a": {"minimum": "x"}}},
    "old_dialect": {
        "type": "object",
        "properties": {"a": {"exclusiveMinimum": True}},
        "$schema": "http://json-schema.org/draft-04/schema#",
    },
}
GOOD = {
    "dialect": {"$schema": "http://nowhere/x#", "type": "object", **_ARGUMENT},
    "reference": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A"}},
        "$defs": {"A": {"type": "integer"}},
    },
    "a-b": {"type": "object"},
    "a.b": {"type": "object"},
    "3d": {"type": "object"},
}


def odd_tools() -> list[object]:
    found: list[object] = [{"name": n, "inputSchema": s} for n, s in (ODD | GOOD).items()]
    more: dict[str, object] = {"inputSchema": {"type": "object"}}
    found += [{"name": "described", "description": 3, "outputSchema": 4, "annotations": 5, **more}]
    found += [{"name": "3d", **more}, {"name": None, **more}, more, "text", None]
    return found


def call(name: str, arguments: dict[str, str]) -> dict[str, object]:
    if name == "count-words":
        with open(arguments["path"]) as file:
            return {"content": [{"type": "text", "text": str(len(file.read().split()))}]}
    if name == "picture":
        return {"content": [{"type": "image", "mimeType": "image/png", "data": "aGVsbG8="}]}
    if name == "long":
        return {"content": [{"type": "text", "text": "é" * 100_000}]}
    if name == "variable":
        return {"content": [{"type": "text", "text": os.environ.get("DRAWLOOM_TEST", "")}]}
    if name == "pid":
        return {"content": [], "structuredContent": {"pid": os.getpid()}}
    return {"content": [{"type": "text", "text": "it went wrong"}], "isError": True}


def main(mood: str) -> None:
    if mood == "nonsense":
        print("this is not JSON", flush=True)
        sys.exit(3)
    if mood == "odd":
        TOOLS[:] = odd_tools()  # type: ignore[assignment]
    if mood in ("dies", "stillborn"):
        TOOLS.append({"name": "variable", "inputSchema": {"type": "object"}})
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message or "method" not in message or mood == "silent":
            continue
        method, params, result = message["method"], message.get("params", {}), {}
        if method == "initialize":
            result = {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "test", "version": "1"},
            }
        elif method == "tools/list":
            at = int(params.get("cursor", 0))
            result = {"tools": TOOLS[at : at + 3]}
            if at + 3 < len(TOOLS):
                result["nextCursor"] = str(at + 3)
        elif method == "tools/call":
            if mood == "crash":
                print("dying", file=sys.stderr)
                sys.exit(7)
            print("a line that is no message", flush=True)
            print(json.dumps({"jsonrpc": "2.0", "id": 99, "method": "ping"}), flush=True)
            if mood == "mute":
                continue
            result = call(params["name"], params.get("arguments", {}))
            if mood == "dies" and params["name"] == "fail":
                sys.exit(7)
        elif method != "ping":
            error = {"code": -32601, "message": f"no {method}"}
            print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}), flush=True)
            continue
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
