"""Tool calls out of streaming text.

A parser is fed text cut anywhere and says what it is sure of: plain text, that a call's *name*
is known (its environment can be claimed), that a call is complete (a readonly one can start).
Nothing a model writes makes it raise: what cannot be understood is a call with an `error`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

from drawloom.tools.calls import ToolCall


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Named:
    """A call's name is known, its arguments are still being written."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A call is complete."""

    index: int
    call: ToolCall


Piece = Text | Named | Closed


class Parser(Protocol):
    """One for each turn."""

    def feed(self, text: str) -> list[Piece]: ...

    def end(self) -> list[Piece]:
        """The turn is over: what was open is closed as it is."""
        ...


_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_NAME = re.compile(r'^\s*\{\s*"name"\s*:\s*"([^"\\]+)"')


class HermesParser:
    """``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, as Hermes and Qwen write it.

    `prefix` begins the ids of its calls.
    """

    def __init__(self, prefix: str = "call") -> None:
        self._prefix = prefix
        self._buffer = ""
        self._inside = False
        self._named = False
        self._count = 0

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def end(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self._inside:
            pieces.append(self._close(self._buffer))
        elif self._buffer:
            pieces.append(Text(self._buffer))
        self._buffer, self._inside = "", False
        return pieces

    def _advance(self, pieces: list[Piece]) -> bool:
        return self._read_call(pieces) if self._inside else self._read_text(pieces)

    def _read_text(self, pieces: list[Piece]) -> bool:
        before, found, after = self._buffer.partition(_OPEN)
        if not found:
            keep = _overlap(before, _OPEN)
            before, self._buffer = before[: len(before) - keep], before[len(before) - keep :]
        else:
            self._buffer, self._inside, self._named = after, True, False
        if before:
            pieces.append(Text(before))
        return bool(found)

    def _read_call(self, pieces: list[Piece]) -> bool:
        if not self._named and (match := _NAME.match(self._buffer)):
            self._named = True
            pieces.append(Named(self._count, match[1]))
        body, found, after = self._buffer.partition(_CLOSE)
        if not found:
            return False
        pieces.append(self._close(body))
        self._buffer, self._inside = after, False
        return True

    def _close(self, body: str) -> Closed:
        index, self._count = self._count, self._count + 1
        return Closed(index, read_call(f"{self._prefix}-{index}", body))


def read_call(id: str, body: str) -> ToolCall:
    """The call that a JSON object stands for; with an `error` if it stands for none."""
    body = body.strip()
    try:
        data = json.loads(body, strict=False)
        if not isinstance(data, dict):
            return ToolCall(id, "", {}, body, "a tool call is a JSON object")
        name, arguments = data.get("name"), data.get("arguments", data.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}", strict=False)
    except (ValueError, RecursionError) as error:
        return ToolCall(id, _guess(body), {}, body, f"the call is not valid JSON: {error}")
    return _checked(id, name, arguments, body)


def _checked(id: str, name: Any, arguments: Any, body: str) -> ToolCall:
    if not isinstance(name, str) or not name:
        return ToolCall(id, "", {}, body, "the call has no name")
    if not isinstance(arguments, dict):
        return ToolCall(id, name, {}, body, "the arguments are not a JSON object")
    return ToolCall(id, name, arguments, body)


def _guess(body: str) -> str:
    match = _NAME.match(body)
    return match[1] if match else ""


def _overlap(text: str, mark: str) -> int:
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


__all__ = ["Closed", "HermesParser", "Named", "Parser", "Piece", "Text", "read_call"]
