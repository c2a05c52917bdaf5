"""Calls as Llama 3 writes them: an answer that is ``{"name": …, "parameters": {…}}``, several
divided by semicolons, behind ``<|python_tag|>`` or not. Any other answer is text."""

import re

from drawloom.tools.parsers.base import HEAD, Brackets, Closed, Named, Piece, Text, read_call

_TAG = "<|python_tag|>"
_KEYS = ('{"name":"', '{"type":"function","name":"')


class LlamaJsonParser:
    """`prefix` begins the ids of its calls."""

    def __init__(self, prefix: str = "call") -> None:
        self._prefix = prefix
        self._buffer = ""
        self._plain = self._named = False
        self._count = self._scanned = 0
        self._brackets = Brackets()

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
        if not body.strip(" \n;") and self._count:
            return []
        if self._named:
            return [self._close(body)]
        return [Text(body)] if body else []

    def _advance(self, pieces: list[Piece]) -> bool:
        if not self._named:
            return self._begin(pieces)
        end = self._brackets.end(self._buffer, self._scanned)
        self._scanned = len(self._buffer)
        if end < 0:
            return False
        body, self._buffer = self._buffer[:end], self._buffer[end:]
        pieces.append(self._close(body))
        return True

    def _begin(self, pieces: list[Piece]) -> bool:
        text = self._buffer.lstrip(" \n;" if self._count else " \n")
        if _TAG.startswith(text) and text != _TAG:
            return False
        text = text.removeprefix(_TAG).lstrip()
        if match := HEAD.match(text):
            pieces.append(Named(self._count, match[1]))
            self._buffer, self._named, self._scanned = text, True, 0
            self._brackets = Brackets()
            return True
        if not _could_begin(text):
            pieces.append(Text(self._buffer))
            self._buffer, self._plain = "", True
        return False

    def _close(self, body: str) -> Closed:
        index, self._count, self._named = self._count, self._count + 1, False
        return Closed(index, read_call(f"{self._prefix}-{index}", body))


def _could_begin(text: str) -> bool:
    """Whether more text could make this the beginning of a call."""
    inside = re.sub(r"\s+", "", text)
    return any(key.startswith(inside) or inside.startswith(key) for key in _KEYS)


__all__ = ["LlamaJsonParser"]
