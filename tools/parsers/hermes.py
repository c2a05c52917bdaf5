"""Calls as Hermes and Qwen write them: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``."""

from collections.abc import Collection

from drawloom.tools.parsers.base import HEAD, Buffered, Named, Piece, Strings, Text, read_call
from drawloom.tools.tool_call import ToolCall

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(Buffered):
    """Parse calls that end at a mark.

    In the strings of a JSON object the mark is text; if a string never ends, the first mark ends
    the call.
    """

    def __init__(self, prefix: str = "call", offered: Collection[str] | None = None) -> None:
        super().__init__(prefix, offered)
        self._inside = self._named = False
        self._strings: Strings | None = None

    def end(self) -> list[Piece]:
        pieces: list[Piece] = []
        while self._inside:
            body, _, after = self._buffer.partition(_CLOSE)
            self._leave(body, after, pieces)
            while self._advance(pieces):
                pass
        if self._buffer:
            pieces.append(Text(self._buffer))
        self._buffer = ""
        return pieces

    def _advance(self, pieces: list[Piece]) -> bool:
        if not self._inside:
            self._inside = self._text_before(_OPEN, pieces)
            self._named, self._strings = False, None
            return self._inside
        if not self._named and (match := HEAD.match(self._buffer)):
            self._named = True
            pieces.append(Named(self._count, match[1]))
        at = self._closed_at()
        if at < 0:
            return False
        self._leave(self._buffer[:at], self._buffer[at + len(_CLOSE) :], pieces)
        return True

    def _closed_at(self) -> int:
        if self._strings is None:
            if not self._buffer.lstrip().startswith("{"):
                return self._buffer.find(_CLOSE)
            self._strings = Strings(_CLOSE)
        return self._strings.find(self._buffer)

    def _leave(self, body: str, after: str, pieces: list[Piece]) -> None:
        pieces.append(self._close(body))
        self._buffer, self._inside = after, False

    def _call(self, id: str, body: str) -> ToolCall:
        return read_call(id, body)


__all__ = ["HermesParser"]
