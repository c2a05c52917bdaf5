"""Calls as Llama 3.2 and 4 write them: ``[search(query="x", limit=3), today()]``, an answer that is
a Python list of calls with literal arguments. Any other answer is text."""

import ast
import re
from typing import Any

from drawloom.tools.calls import ToolCall
from drawloom.tools.parsers.base import Buffered, Named, Piece, Text

_NAME = re.compile(r"[\s,]*([A-Za-z_][\w.]*)\s*\(")
_UNFINISHED = re.compile(r"[\s,]*(?:[A-Za-z_][\w.]*\s*)?\Z")
_CONSTANTS = {"true": True, "false": False, "null": None}


class PythonicParser(Buffered):
    """A call ends where its parenthesis closes."""

    def __init__(self, prefix: str = "call") -> None:
        super().__init__(prefix)
        self._open = False
        self._name = ""

    def end(self) -> list[Piece]:
        body, self._buffer = self._buffer, ""
        if self._name:
            return [self._close(body)]
        if self._count and not body.strip(" \n,]"):
            return []
        return [Text(body)] if body else []

    def _advance(self, pieces: list[Piece]) -> bool:
        if self._name:
            return self._read_body(pieces)
        text = self._buffer.lstrip()
        return self._next(text, pieces) if self._open else self._begin(text, pieces)

    def _begin(self, text: str, pieces: list[Piece]) -> bool:
        if not text:
            return False
        if text.startswith("[") and _NAME.match(text[1:]):
            self._open, self._buffer = True, text[1:]
            return True
        undecided = text.startswith("[") and _UNFINISHED.match(text[1:])
        return False if undecided else self._give_up(pieces)

    def _next(self, text: str, pieces: list[Piece]) -> bool:
        if match := _NAME.match(text):
            self._name, self._buffer = match[1], text[match.end() - 1 :]
            self._begin_body("\"'")
            pieces.append(Named(self._count, self._name))
            return True
        if text.startswith("]") and text[1:].strip():
            self._buffer = text[1:]
            return self._give_up(pieces)
        undecided = text.startswith("]") or _UNFINISHED.match(text)
        return False if undecided else self._give_up(pieces)

    def _call(self, id: str, body: str) -> ToolCall:
        name, self._name = self._name, ""
        return _read(id, name, body)


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
