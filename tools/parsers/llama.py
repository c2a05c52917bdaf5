"""Calls as Llama 3 writes them: an answer that is ``{"name": …, "parameters": {…}}``, several
divided by semicolons, behind ``<|python_tag|>`` or not. Any other answer is text."""

import re

from drawloom.tools.calls import ToolCall
from drawloom.tools.parsers.base import HEAD, Buffered, Named, Piece, Text, read_call

_TAG = "<|python_tag|>"
_KEYS = ('{"name":"', '{"type":"function","name":"')


class LlamaJsonParser(Buffered):
    """A call ends where its object does."""

    def __init__(self, prefix: str = "call") -> None:
        super().__init__(prefix)
        self._named = False

    def end(self) -> list[Piece]:
        body, self._buffer = self._buffer, ""
        if not body.strip(" \n;") and self._count:
            return []
        if self._named:
            return [self._close(body)]
        return [Text(body)] if body else []

    def _advance(self, pieces: list[Piece]) -> bool:
        return self._read_body(pieces) if self._named else self._begin(pieces)

    def _begin(self, pieces: list[Piece]) -> bool:
        text = self._buffer.lstrip(" \n;" if self._count else " \n")
        if _TAG.startswith(text) and text != _TAG:
            return False
        text = text.removeprefix(_TAG).lstrip()
        if match := HEAD.match(text):
            pieces.append(Named(self._count, match[1]))
            self._buffer, self._named = text, True
            self._begin_body()
            return True
        return False if _could_begin(text) else self._give_up(pieces)

    def _call(self, id: str, body: str) -> ToolCall:
        self._named = False
        return read_call(id, body)


def _could_begin(text: str) -> bool:
    """Whether more text could make this the beginning of a call."""
    inside = re.sub(r"\s+", "", text)
    return any(key.startswith(inside) or inside.startswith(key) for key in _KEYS)


__all__ = ["LlamaJsonParser"]
