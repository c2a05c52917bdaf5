"""Calls as Mistral writes them behind ``[TOOL_CALLS]``: a JSON list of ``{"name", "arguments"}``,
or since tokenizer v11 ``name{…}``, ``name[ARGS]{…}`` or ``name[CALL_ID]id[ARGS]{…}`` with the mark
before each. The ids that a model writes may repeat, so calls get their own."""

import json
import re
from collections.abc import Collection

from drawloom.tools.parsers.base import HEAD, Buffered, Named, Piece, Text, read_call
from drawloom.tools.tool_call import ToolCall

_MARK = "[TOOL_CALLS]"
_NAMED = re.compile(r"\s*([\w.\-/]+)\s*(?:\[CALL_ID\]\s*[\w-]*\s*)?(?:\[ARGS\])?\s*(?=\{)")
_ITEM = re.compile(r"[\s,\[]*(?=\{)")


class MistralParser(Buffered):
    """Behind the mark everything is a call; each ends where its object does."""

    def __init__(self, prefix: str = "call", offered: Collection[str] | None = None) -> None:
        super().__init__(prefix, offered)
        self._marked = self._inside = self._told = False
        self._name = ""

    def end(self) -> list[Piece]:
        body, self._buffer = self._buffer, ""
        spare = not body.strip(" \n,][")
        if self._inside or (self._marked and not self._count and not spare):
            return [self._close(body)]
        return [] if self._marked and spare else [Text(body)] if body else []

    def _advance(self, pieces: list[Piece]) -> bool:
        if not self._marked:
            self._marked = self._text_before(_MARK, pieces)
            return self._marked
        if not self._inside:
            return self._find_call()
        if not self._told and (name := self._named()):
            self._told = True
            pieces.append(Named(self._count, name))
        return self._read_body(pieces)

    def _named(self) -> str:
        match = HEAD.match(self._buffer)
        return self._name or (match[1] if match else "")

    def _find_call(self) -> bool:
        text = self._buffer.lstrip(" \n,]")
        if text.startswith(_MARK):
            self._buffer = text.removeprefix(_MARK)
            return True
        if match := _ITEM.match(self._buffer):
            self._name, self._buffer = "", self._buffer[match.end() :]
        elif match := _NAMED.match(text):
            self._name, self._buffer = match[1], text[match.end() :]
        else:
            return False
        self._inside, self._told = True, False
        self._begin_body()
        return True

    def _call(self, id: str, body: str) -> ToolCall:
        name, self._inside, self._name = self._name, False, ""
        if name:
            body = json.dumps({"name": name}, ensure_ascii=False)[:-1] + f', "arguments": {body}}}'
        return read_call(id, body)


__all__ = ["MistralParser"]
