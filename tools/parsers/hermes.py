"""Calls as Hermes and Qwen write them: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``."""

from drawloom.tools.calls import ToolCall
from drawloom.tools.parsers.base import HEAD, Buffered, Named, Piece, Text, read_call

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(Buffered):
    """A call ends at its mark, whatever its body is."""

    def __init__(self, prefix: str = "call") -> None:
        super().__init__(prefix)
        self._inside = self._named = False

    def end(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self._inside:
            pieces.append(self._close(self._buffer))
        elif self._buffer:
            pieces.append(Text(self._buffer))
        self._buffer, self._inside = "", False
        return pieces

    def _advance(self, pieces: list[Piece]) -> bool:
        if not self._inside:
            self._inside = self._text_before(_OPEN, pieces)
            self._named = False
            return self._inside
        if not self._named and (match := HEAD.match(self._buffer)):
            self._named = True
            pieces.append(Named(self._count, match[1]))
        body, found, after = self._buffer.partition(_CLOSE)
        if not found:
            return False
        pieces.append(self._close(body))
        self._buffer, self._inside = after, False
        return True

    def _call(self, id: str, body: str) -> ToolCall:
        return read_call(id, body)


__all__ = ["HermesParser"]
