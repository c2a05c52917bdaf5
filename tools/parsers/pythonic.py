"""Calls as Llama 3.2 and 4 write them: ``[search(query="x", limit=3), today()]``, an answer that is
a Python list of calls with literal arguments. Any other answer is text."""

import ast
import re
from typing import Any

from drawloom.tools.calls import ToolCall
from drawloom.tools.parsers.base import Brackets, Closed, Named, Piece, Text

_NAME = re.compile(r"[\s,]*([A-Za-z_][\w.]*)\s*\(")
_UNFINISHED = re.compile(r"[\s,]*(?:[A-Za-z_][\w.]*\s*)?\Z")
_CONSTANTS = {"true": True, "false": False, "null": None}


class PythonicParser:
    """`prefix` begins the ids of its calls."""

    def __init__(self, prefix: str = "call") -> None:
        self._prefix = prefix
        self._buffer = ""
        self._open = self._plain = False
        self._name = ""
        self._count = self._scanned = 0
        self._brackets = Brackets("\"'")

    def feed(self, text: str) -> list[Piece]:
        if self._plain:
            return [Text(text)] if text else []
        self._buffer += text
        pieces: list[Piece] = []
        while not self._plain and self._advance(pieces):
            pass
        return pieces

    def end(self) -> list[Piece]:
        body, self._buffer = self._buffer, ""
        if self._name:
            return [self._close(body)]
        if self._count and not body.strip(" \n,]"):
            return []
        return [Text(body)] if body else []

    def _advance(self, pieces: list[Piece]) -> bool:
        if self._name:
            return self._read_arguments(pieces)
        text = self._buffer.lstrip()
        if not self._open:
            if not text:
                return False
            if not text.startswith("["):
                return self._give_up(pieces)
            if _NAME.match(text[1:]):
                self._open, self._buffer = True, text[1:]
                return True
            return False if _UNFINISHED.match(text[1:]) else self._give_up(pieces)
        if match := _NAME.match(text):
            self._name, self._buffer = match[1], text[match.end() - 1 :]
            self._scanned, self._brackets = 0, Brackets("\"'")
            pieces.append(Named(self._count, self._name))
            return True
        if not text.startswith("]") and not _UNFINISHED.match(text):
            return self._give_up(pieces)
        if text.startswith("]") and text[1:].strip():
            self._buffer = text[1:]
            return self._give_up(pieces)
        return False

    def _give_up(self, pieces: list[Piece]) -> bool:
        pieces.append(Text(self._buffer))
        self._buffer, self._plain = "", True
        return False

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        end = self._brackets.end(self._buffer, self._scanned)
        self._scanned = len(self._buffer)
        if end < 0:
            return False
        body, self._buffer = self._buffer[:end], self._buffer[end:]
        pieces.append(self._close(body))
        return True

    def _close(self, body: str) -> Closed:
        name, index = self._name, self._count
        self._name, self._count = "", self._count + 1
        return Closed(index, _read(f"{self._prefix}-{index}", name, body))


def _read(id: str, name: str, body: str) -> ToolCall:
    raw = name + body
    try:
        call = ast.parse("f" + body, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return ToolCall(id, name, {}, raw, "arguments are given by name: f(x=1)")
        if any(k.arg is None for k in call.keywords):
            return ToolCall(id, name, {}, raw, "** is not an argument")
        arguments = {str(k.arg): _literal(k.value) for k in call.keywords}
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        return ToolCall(id, name, {}, raw, f"the call is not valid Python: {error}")
    return ToolCall(id, name, arguments, raw)


def _literal(node: ast.expr) -> Any:
    """A literal; JSON's constants too, which models mix in."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in _CONSTANTS:
            part.__class__ = ast.Constant  # type: ignore[assignment]
            part.value = _CONSTANTS[part.id]  # type: ignore[attr-defined]
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise ValueError("an argument is not a literal") from None
    if isinstance(value, bytes | set | complex):
        raise ValueError("an argument has no JSON form")
    return value


__all__ = ["PythonicParser"]
