"""Calls as Llama 3.2 and 4 write them: ``[search(query="x", limit=3), today()]``, an answer that is
a Python list of calls with literal arguments, between ``<|python_start|>`` and ``<|python_end|>``
or not. Any other answer is text."""

import ast
import re
from collections.abc import Collection
from typing import Any

from drawloom.tools.parsers.base import Buffered, Named, Piece, Text, checked
from drawloom.tools.tool_call import ToolCall

_START, _END = "<|python_start|>", "<|python_end|>"

_NAME = re.compile(r"[\s,]*([A-Za-z_][\w.]*)\s*\(")
_UNFINISHED = re.compile(r"[\s,]*(?:[A-Za-z_][\w.]*\s*)?\Z")
_CONSTANTS = {"true": True, "false": False, "null": None}


class PythonicParser(Buffered):
    """Parse calls that are Python calls in a list.

    Without a mark before it, a list whose first call names no offered tool is an answer.
    """

    def __init__(self, prefix: str = "call", offered: Collection[str] | None = None) -> None:
        super().__init__(prefix, offered)
        self._open = self._marked = False
        self._name = ""

    def end(self) -> list[Piece]:
        body, self._buffer = self._buffer, ""
        if self._name:
            return [self._close(body)]
        if self._count and not body.replace(_END, "").strip(" \n,]"):
            return []
        return [Text(body)] if body else []

    def _advance(self, pieces: list[Piece]) -> bool:
        if self._name:
            return self._read_body(pieces)
        text = self._buffer.lstrip()
        return self._next(text, pieces) if self._open else self._begin(text, pieces)

    def _begin(self, text: str, pieces: list[Piece]) -> bool:
        if _START.startswith(text) and text != _START:
            return False
        marked = text.startswith(_START)
        text = text.removeprefix(_START).lstrip()
        match = _NAME.match(text[1:]) if text.startswith("[") else None
        if match and (marked or self._is_offered(match[1])):
            self._open, self._buffer = True, text[1:]
            return True
        undecided = not text or (text.startswith("[") and _UNFINISHED.match(text[1:]))
        return False if undecided and not match else self._give_up(pieces)

    def _next(self, text: str, pieces: list[Piece]) -> bool:
        if match := _NAME.match(text):
            self._name, self._buffer = match[1], text[match.end() - 1 :]
            self._begin_body("\"'")
            pieces.append(Named(self._count, self._name))
            return True
        if text.startswith("]"):
            rest = text[1:].lstrip()
            if _END.startswith(rest) and rest != _END:
                return False
            rest = rest.removeprefix(_END)
            if rest.strip():
                self._buffer = rest
                return self._give_up(pieces)
            return False
        return False if _UNFINISHED.match(text) else self._give_up(pieces)

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
    return checked(id, name, arguments, raw)


def _literal(node: ast.expr) -> Any:
    """Evaluate a Python literal, JSON's constants included, which models mix in."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in _CONSTANTS:
            part.__class__ = ast.Constant  # type: ignore[assignment]
            part.value = _CONSTANTS[part.id]  # type: ignore[attr-defined]
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise ValueError("an argument is not a literal") from None
    return value


__all__ = ["PythonicParser"]
