"""Calls as Llama 3 writes them: an answer that is ``{"name": …, "parameters": {…}}``, several
divided by semicolons, behind ``<|python_tag|>`` or not. Any other answer is text."""

import re
from collections.abc import Collection

from drawloom.tools.parsers.base import HEAD, Buffered, Named, Piece, Text, read_call
from drawloom.tools.tool_call import ToolCall

_TAGS = ("<|python_tag|>", "<|python_start|>")
_END = "<|python_end|>"
_KEYS = ('{"name":"', '{"type":"function","name":"')


class LlamaJsonParser(Buffered):
    """Parse calls that are JSON objects.

    Without a tag before it, an object that names no offered tool is an answer.
    """

    def __init__(self, prefix: str = "call", offered: Collection[str] | None = None) -> None:
        super().__init__(prefix, offered)
        self._named = self._tagged = False

    def end(self) -> list[Piece]:
        body, self._buffer = self._buffer, ""
        if self._named:
            return [self._close(body)]
        if self._count and not body.replace(_END, "").strip(" \n;"):
            return []
        return [Text(body)] if body else []

    def _advance(self, pieces: list[Piece]) -> bool:
        return self._read_body(pieces) if self._named else self._begin(pieces)

    def _begin(self, pieces: list[Piece]) -> bool:
        text = self._buffer.lstrip(" \n;" if self._count else " \n")
        marks = (*_TAGS, _END) if self._count else _TAGS
        if any(mark.startswith(text) and mark != text for mark in marks):
            return False
        if self._count and text.startswith(_END):
            self._buffer = text.removeprefix(_END)
            return True
        tagged = self._tagged
        for tag in _TAGS:
            if text.startswith(tag):
                text, tagged = text.removeprefix(tag), True
        text = text.lstrip()
        if (match := HEAD.match(text)) and (tagged or self._is_offered(match[1])):
            pieces.append(Named(self._count, match[1]))
            self._buffer, self._named, self._tagged = text, True, tagged
            self._begin_body()
            return True
        return False if not match and _could_begin(text) else self._give_up(pieces)

    def _call(self, id: str, body: str) -> ToolCall:
        self._named = False
        return read_call(id, body)


def _could_begin(text: str) -> bool:
    """Return whether more text could make this the beginning of a call."""
    inside = re.sub(r"\s+", "", text)
    return any(key.startswith(inside) or inside.startswith(key) for key in _KEYS)


__all__ = ["LlamaJsonParser"]
