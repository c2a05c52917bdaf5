"""Strings that know which of their characters came from message contents.

A chat template cuts, strips, joins and compares contents before it writes them. `Tracked` is a
string for all of Python and Jinja, and what these operations return knows its spans again. Text
made in any other way from a tracked string counts as content as a whole, so that a content is never
taken for the template's own text.
"""

from collections.abc import Iterable, Iterator
from operator import index
from typing import Any, SupportsIndex

from drawloom.prompts import Span, clip

Spans = tuple[Span, ...]


class Tracked(str):
    """Track the spans of a string that are content: all of it, unless `spans` are given."""

    __slots__ = ("_spans",)
    _spans: Spans

    def __new__(cls, text: str, spans: Spans | None = None) -> "Tracked":
        made = super().__new__(cls, text)
        made._spans = (((0, len(text)),) if text else ()) if spans is None else spans
        return made

    def __str__(self) -> str:
        return self

    def __format__(self, spec: str) -> str:
        return Tracked(format(str.__str__(self), spec))

    def __add__(self, other: Any) -> str:
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> str:
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return concat([self] * index(times))

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return Tracked(str.__mod__(self, values))

    def __rmod__(self, form: Any) -> str:
        return Tracked(str.__mod__(form, self)) if isinstance(form, str) else NotImplemented

    def __iter__(self) -> Iterator[str]:
        return (self[at] for at in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if not isinstance(key, slice):
            at = index(key)
            at += len(self) if at < 0 else 0
            return self._part(str.__getitem__(self, key), at)
        start, _, step = key.indices(len(self))
        found = str.__getitem__(self, key)
        return self._part(found, start) if step == 1 else Tracked(found)

    def _part(self, text: str, start: int) -> "Tracked":
        """Return `text`, found at `start` of this string, with its spans."""
        return Tracked(text, clip(self._spans, start, start + len(text)))

    def _parts(self, texts: Iterable[str], between: int = 0) -> "list[str]":
        """Substrings in their order, `between` characters or white space from each other."""
        found: list[str] = []
        at = 0
        for text in texts:
            at = str.find(self, text, at)
            found.append(self._part(text, at))
            at += len(text) + between
        return found

    def lstrip(self, chars: str | None = None, /) -> str:
        text = str.lstrip(self, chars)
        return self._part(text, len(self) - len(text))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._part(str.rstrip(self, chars), 0)

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._parts(str.split(self, sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._parts(str.rsplit(self, sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._parts(str.splitlines(self, keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, mark, after = self._parts(str.partition(self, sep))
        return before, mark, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, mark, after = self._parts(str.rpartition(self, sep))
        return before, mark, after

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return Tracked(str.replace(self, old, new, count))
        return join(new, self.split(old, count))

    def join(self, parts: Iterable[str], /) -> str:
        return join(self, parts)


def _whole(name: str) -> Any:
    plain = getattr(str, name)

    def method(self: Tracked, *args: Any, **named: Any) -> str:
        text = plain(self, *args, **named)
        same = name in _CASES and len(text) == len(self)
        return Tracked(text, self._spans if same else None)

    method.__name__ = name
    return method


_CASES = ("capitalize", "casefold", "lower", "swapcase", "title", "upper")
_OTHERS = ("center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill")
for _name in (*_CASES, *_OTHERS):
    setattr(Tracked, _name, _whole(_name))


def spans_of(text: str) -> Spans:
    """Return the spans of a string that are contents."""
    return text._spans if isinstance(text, Tracked) else ()


def concat(parts: Iterable[str]) -> str:
    """Return the strings joined, tracked if any of them is."""
    texts = list(parts)
    if not any(isinstance(text, Tracked) for text in texts):
        return "".join(texts)
    spans: list[Span] = []
    at = 0
    for text in texts:
        for start, end in spans_of(text):
            if spans and spans[-1][1] == at + start:
                spans[-1] = (spans[-1][0], at + end)
            else:
                spans.append((at + start, at + end))
        at += len(text)
    return Tracked("".join(texts), tuple(spans))


def join(separator: str, parts: Iterable[str]) -> str:
    """Return what ``separator.join(parts)`` does, tracked if any of them is."""
    texts = [text for part in parts for text in (separator, part)]
    return concat(texts[1:])


__all__ = ["Spans", "Tracked", "concat", "join", "spans_of"]
