"""Calls as Hermes and Qwen write them: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``."""

from drawloom.tools.parsers.base import HEAD, Closed, Named, Piece, Text, overlap, read_call

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesParser:
    """`prefix` begins the ids of its calls."""

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
            keep = overlap(before, _OPEN)
            before, self._buffer = before[: len(before) - keep], before[len(before) - keep :]
        else:
            self._buffer, self._inside, self._named = after, True, False
        if before:
            pieces.append(Text(before))
        return bool(found)

    def _read_call(self, pieces: list[Piece]) -> bool:
        if not self._named and (match := HEAD.match(self._buffer)):
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


__all__ = ["HermesParser"]
