"""An MCP server without the SDK, so that it runs wherever Python does.

python mcp_server.py [crash|nonsense|silent]
"""

import json
import os
import sys

TOOLS = [
    {"name": "count-words", "description": "Count the words of a file.",
     "inputSchema": {"type": "object", "properties": {"path": {"type": "string"}},
                     "required": ["path"], "additionalProperties": False},
     "annotations": {"readOnlyHint": True, "idempotentHint": True}},
    {"name": "fail", "description": "", "inputSchema": {"type": "object"}},
    {"name": "picture", "description": "", "inputSchema": {"type": "object"}},
    {"name": "long", "description": "", "inputSchema": {"type": "object"}},
    {"name": "pid", "description": "", "inputSchema": {"type": "object"}},
]  # fmt: skip


def call(name: str, arguments: dict[str, str]) -> dict[str, object]:
    if name == "count-words":
        with open(arguments["path"]) as file:
            return {"content": [{"type": "text", "text": str(len(file.read().split()))}]}
    if name == "picture":
        return {"content": [{"type": "image", "mimeType": "image/png", "data": "aGVsbG8="}]}
    if name == "long":
        return {"content": [{"type": "text", "text": "é" * 100_000}]}
    if name == "pid":
        return {"content": [], "structuredContent": {"pid": os.getpid()}}
    return {"content": [{"type": "text", "text": "it went wrong"}], "isError": True}


def main(mood: str) -> None:
    if mood == "nonsense":
        print("this is not JSON", flush=True)
        sys.exit(3)
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message or "method" not in message or mood == "silent":
            continue
        method, params, result = message["method"], message.get("params", {}), {}
        if method == "initialize":
            result = {"protocolVersion": params["protocolVersion"],
                      "capabilities": {"tools": {}},
                      "serverInfo": {"name": "test", "version": "1"}}  # fmt: skip
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
            result = call(params["name"], params.get("arguments", {}))
        elif method != "ping":
            error = {"code": -32601, "message": f"no {method}"}
            print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}), flush=True)
            continue
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
