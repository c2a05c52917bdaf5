"""Seam of the parsers of streaming text, and the pieces that they report.

A parser is fed text cut anywhere and reports what is certain: plain text, reasoning, that a call's
*name* is known (its environment can be claimed), that a call is complete (a readonly one can
start). Nothing that a model writes makes it raise: a malformed call has an `error`.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from drawloom.tools.tool_call import ToolCall, new_call_id


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Report text that a model reasons with before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Named:
    """Report that a call's name is known while its arguments are still being written."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Closed:
    """Report that a call is complete."""

    index: int
    call: ToolCall


Piece = Text | Reasoning | Named | Closed


class Parser(Protocol):
    """Parse the answer of one turn."""

    def feed(self, text: str) -> list[Piece]: ...

    def end(self) -> list[Piece]:
        """End the turn; close an unfinished call as it is."""
        ...


_MOST_LEVELS = 64
HEAD = re.compile(r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]+)"')
"""How a call that is a JSON object begins, up to its name."""


def read_call(id: str, body: str) -> ToolCall:
    """Read a call from a JSON object; it has an `error` if the object is no call."""
    body = body.strip()
    begun = HEAD.match(body)  # the name that was told while the call was written stays its name
    try:
        data = json.loads(body, strict=False)
        if not isinstance(data, dict):
            return ToolCall(id, "", {}, body, "a tool call is a JSON object")
        name = begun[1] if begun else data.get("name")
        arguments = data.get("arguments", data.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}", strict=False)
    except (ValueError, RecursionError) as error:
        name = begun[1] if begun else ""
        return ToolCall(id, name, {}, body, f"the call is not valid JSON: {error}")
    return checked(id, name, arguments, body)


def checked(id: str, name: Any, arguments: Any, body: str) -> ToolCall:
    """Make a call; it has an `error` if its arguments are no JSON object."""
    if not isinstance(name, str) or not name:
        return ToolCall(id, "", {}, body, "the call has no name")
    if not isinstance(arguments, dict):
        return ToolCall(id, name, {}, body, "the arguments are not a JSON object")
    if _is_deep(arguments):
        return ToolCall(id, name, {}, body, "the arguments are nested too deeply")
    try:
        json.dumps([name, arguments], allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a character, which nothing can store or send
        name, arguments = _mended(name), _mended(arguments)
    except (ValueError, TypeError, RecursionError) as error:
        return ToolCall(id, name, {}, body, f"the arguments have no JSON form: {error}")
    return ToolCall(id, name, arguments, body)


def _is_deep(value: Any) -> bool:
    """Return whether a JSON value is nested too deeply for templates and the store.

    Both walk it by recursion.
    """
    level = [value]
    for _ in range(_MOST_LEVELS):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list | tuple)]
        if not level:
            return False
    return True


def _mended(value: Any) -> Any:
    """Join surrogate pairs in a value, and replace lone surrogates by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    return [_mended(item) for item in value] if isinstance(value, list | tuple) else value


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


class Brackets:
    """Find the end of a bracketed value in text that arrives in parts, skipping its strings.

    Strings are JSON's, or with ``"\'`` as `quotes` Python's, triple quotes included.
    """

    def __init__(self, quotes: str = '"') -> None:
        self._quotes = quotes
        self._at = self._depth = 0
        self._quote = ""

    def end(self, text: str) -> int:
        """Return where the thing that `text` begins with ends; -1 if that is not there yet.
        `text` is all of it so far."""
        while self._at < len(text):
            step = self._string(text) if self._quote else self._code(text)
            if step == 0:
                return -1  # what follows decides
            self._at += step
            if self._depth <= 0:
                return self._at
        return -1

    def _string(self, text: str) -> int:
        if text[self._at] == "\\":
            return 2 if self._at + 1 < len(text) else 0
        rest = text[self._at : self._at + len(self._quote)]
        if rest == self._quote:
            self._quote = ""
            return len(rest)
        return 0 if self._at + len(rest) == len(text) and self._quote.startswith(rest) else 1

    def _code(self, text: str) -> int:
        char = text[self._at]
        if char in self._quotes:
            return self._open(text, char)
        self._depth += (char in "([{") - (char in ")]}")
        return 1

    def _open(self, text: str, char: str) -> int:
        if len(self._quotes) == 1:
            self._quote = char
            return 1
        rest = text[self._at : self._at + 3]
        if rest == char * len(rest) and len(rest) < 3:
            return 0
        self._quote = char * 3 if rest == char * 3 else char
        return len(self._quote)


class Strings:
    """Finds a mark outside of JSON's strings in text that comes in parts."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._at = 0
        self._quoted = False

    def find(self, text: str) -> int:
        """Return where the mark is in `text`, all of it so far; -1 if it is not there yet."""
        while self._at < len(text):
            char = text[self._at]
            if self._quoted and char == "\\":
                if self._at + 1 == len(text):
                    return -1  # what is escaped comes with the next part
                self._at += 1
            elif char == '"':
                self._quoted = not self._quoted
            elif not self._quoted and char == self._mark[0]:
                if text.startswith(self._mark, self._at):
                    return self._at
                if self._mark.startswith(text[self._at :]):
                    return -1
            self._at += 1
        return -1


class Buffered(ABC):
    """Parse text, keeping back what is not certain yet.

    `prefix` names the turn for `new_call_id`. `offered` are the names of the tools that the model
    was given, if known: where nothing else marks a call, one with another name is text.

    Subclasses read from `_buffer` in `_advance`, as long as that gets them anywhere. Once `_plain`
    is set, all that follows is text.
    """

    def __init__(self, prefix: str = "call", offered: Collection[str] | None = None) -> None:
        self._prefix, self._offered = prefix, offered
        self._buffer = ""
        self._plain = False
        self._count = 0
        self._brackets = Brackets()

    def feed(self, text: str) -> list[Piece]:
        if self._plain:
            return [Text(text)] if text else []
        self._buffer += text
        pieces: list[Piece] = []
        while not self._plain and self._advance(pieces):
            pass
        return pieces

    @abstractmethod
    def _advance(self, pieces: list[Piece]) -> bool:
        """Read on; True if there may be more to read."""

    @abstractmethod
    def _call(self, id: str, body: str) -> ToolCall:
        """Read a call from its body."""

    def _is_offered(self, name: str) -> bool:
        return self._offered is None or name in self._offered

    def _begin_body(self, quotes: str = '"') -> None:
        """Begin a call at the start of the buffer; it extends to its closing bracket."""
        self._brackets = Brackets(quotes)

    def _read_body(self, pieces: list[Piece]) -> bool:
        end = self._brackets.end(self._buffer)
        if end < 0:
            return False
        body, self._buffer = self._buffer[:end], self._buffer[end:]
        pieces.append(self._close(body))
        return True

    def _close(self, body: str) -> Closed:
        index, self._count = self._count, self._count + 1
        return Closed(index, self._call(new_call_id(self._prefix, index), body))

    def _give_up(self, pieces: list[Piece]) -> bool:
        """Treat the begun call as text."""
        pieces.append(Text(self._buffer))
        self._buffer, self._plain = "", True
        return False

    def _text_before(self, mark: str, pieces: list[Piece]) -> bool:
        """Tell the text before `mark` and take both away; False if it is not there yet."""
        before, found, after = self._buffer.partition(mark)
        if found:
            self._buffer = after
        else:
            keep = overlap(before, mark)
            before, self._buffer = before[: len(before) - keep], before[len(before) - keep :]
        if before:
            pieces.append(Text(before))
        return bool(found)


__all__ = [
    "HEAD",
    "Brackets",
    "Buffered",
    "Closed",
    "Named",
    "Parser",
    "Piece",
    "Reasoning",
    "Strings",
    "Text",
    "checked",
    "overlap",
    "read_call",
]
