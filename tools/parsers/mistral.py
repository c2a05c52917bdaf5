"""Calls as Mistral writes them behind ``[TOOL_CALLS]``: a JSON list of ``{"name", "arguments"}``,
or since tokenizer v11 ``name{…}`` or ``name[ARGS]{…}`` with the mark before each."""

import json
import re

from drawloom.tools.parsers.base import (
    HEAD,
    Brackets,
    Closed,
    Named,
    Piece,
    Text,
    checked,
    overlap,
    read_call,
)

_MARK = "[TOOL_CALLS]"
_NAMED = re.compile(r"\s*([\w.\-/]+)\s*(?:\[ARGS\])?\s*(?=\{)")
_ITEM = re.compile(r"[\s,\[]*(?=\{)")


class MistralParser:
    """`prefix` begins the ids of its calls."""

    def __init__(self, prefix: str = "call") -> None:
        self._prefix = prefix
        self._buffer = ""
        self._state = "text"
        self._name = ""
        self._told = False
        self._count = self._scanned = 0
        self._brackets = Brackets()

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def end(self) -> list[Piece]:
        body, self._buffer = self._buffer, ""
        if self._state == "body":
            return [self._close(body)]
        if self._state == "between":
            if not body.strip(" \n,]["):
                return []
            index, self._count = self._count, self._count + 1
            id = f"{self._prefix}-{index}"
            return [Closed(index, checked(id, "", {}, body))]
        return [Text(body)] if body else []

    def _advance(self, pieces: list[Piece]) -> bool:
        if self._state == "text":
            return self._read_text(pieces)
        return self._read_body(pieces) if self._state == "body" else self._find_call()

    def _read_text(self, pieces: list[Piece]) -> bool:
        before, found, after = self._buffer.partition(_MARK)
        if not found:
            keep = overlap(before, _MARK)
            before, self._buffer = before[: len(before) - keep], before[len(before) - keep :]
        else:
            self._buffer, self._state = after, "between"
        if before:
            pieces.append(Text(before))
        return bool(found)

    def _find_call(self) -> bool:
        text = self._buffer.lstrip(" \n,]")
        if text.startswith(_MARK):
            self._buffer = text.removeprefix(_MARK)
            return True
        match = _ITEM.match(self._buffer) or _NAMED.match(text)
        if match is None:
            return False
        named = match.re is _NAMED
        self._name = match[1] if named else ""
        self._buffer = (text if named else self._buffer)[match.end() :]
        self._state, self._told, self._scanned = "body", False, 0
        self._brackets = Brackets()
        return True

    def _read_body(self, pieces: list[Piece]) -> bool:
        if not self._told:
            match = HEAD.match(self._buffer)
            name = self._name or (match[1] if match else "")
            if name:
                self._told = True
                pieces.append(Named(self._count, name))
        end = self._brackets.end(self._buffer, self._scanned)
        self._scanned = len(self._buffer)
        if end < 0:
            return False
        body, self._buffer = self._buffer[:end], self._buffer[end:]
        pieces.append(self._close(body))
        return True

    def _close(self, body: str) -> Closed:
        index, self._count, self._state = self._count, self._count + 1, "between"
        id = f"{self._prefix}-{index}"
        if not self._name:
            return Closed(index, read_call(id, body))
        whole = json.dumps({"name": self._name})[:-1] + f', "arguments": {body}}}'
        return Closed(index, read_call(id, whole))


__all__ = ["MistralParser"]
