"""Tools for chat templates that know none: as text in ordinary messages, in the way of Hermes.

The system message lists the tools, a call is ``<tool_call>{json}</tool_call>`` in the assistant's
text, and results come back as a user message of ``<tool_response>`` blocks. `HermesParser` reads
what the model answers.
"""

import json
from typing import Any

_HOW = (
    "You may call functions to answer. The functions that you can call, as JSON, are:\n"
    "<tools>\n{tools}\n</tools>\n"
    "For each call, write a JSON object with the function's name and arguments between tags:\n"
    '<tool_call>\n{{"name": <name>, "arguments": <arguments>}}\n</tool_call>'
)


def with_plain_tools(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]], system: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the messages with tools, calls and results in their texts, and no tools.

    Args:
        system: whether the template shows a system message; otherwise the tools are listed in the
            first message of the user.
    """
    shown: list[dict[str, Any]] = []
    before = None
    for message in messages:
        role = message.get("role")
        if role == "tool":
            block = f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>"
            if before == "tool":
                shown[-1]["content"] += "\n" + block
            else:
                shown.append({"role": "user", "content": block})
        else:
            shown.append(_with_calls(message) if message.get("tool_calls") else message)
        before = role
    if tools:
        words = _HOW.format(tools="\n".join(json.dumps(t, ensure_ascii=False) for t in tools))
        _list_tools(shown, words, "system" if system else "user")
    return shown, []


def _list_tools(shown: list[dict[str, Any]], words: str, role: str) -> None:
    place = next((i for i, m in enumerate(shown) if m.get("role") == role), None)
    if place is None:
        shown.insert(0, {"role": role, "content": words})
    else:
        content = _text(shown[place].get("content"))
        shown[place] = {**shown[place], "content": f"{content}\n\n{words}" if content else words}


def _with_calls(message: dict[str, Any]) -> dict[str, Any]:
    parts = [_text(message.get("content"))]
    for call in message["tool_calls"]:
        function = call.get("function", call)
        name, arguments = function.get("name"), function.get("arguments")
        body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        parts.append(f"<tool_call>\n{body}\n</tool_call>")
    rest = {k: v for k, v in message.items() if k != "tool_calls"}
    return {**rest, "content": "\n".join(part for part in parts if part)}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(p.get("text", "")) if isinstance(p, dict) else str(p) for p in content)
    return "" if content is None else str(content)


__all__ = ["with_plain_tools"]
