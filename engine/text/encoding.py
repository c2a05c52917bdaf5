"""Encoding of prompts: control tokens are recognised in the template's own text only.

The tokenizer encodes the whole text at once, so pre-tokenisation and merges at the borders of
contents are those of the whole text. If no control token that it found touches a content, as in
nearly every prompt, these ids are the result. Otherwise a second tokenizer encodes the text again:
a copy that knows the control tokens by random names only, which replace them in the template's own
text. What contents spell out is ordinary text to the copy, and everything else (normaliser, prefix
spaces, stripping around added tokens) happens as before.
"""

import json
import re
import secrets
import threading
from collections.abc import Iterable

from tokenizers import Encoding, Tokenizer

from drawloom.prompts import Prompt, Span

_LONG = 4096
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)


class PromptEncoder:
    """Encode prompts with one tokenizer. Thread-safe; the copy is made when first needed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()  # some files cut or pad every text
        tokenizer.no_padding()
        self._whole = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(t.content for t in added.values() if t.special)
        self._id_of = {t.content: id for id, t in added.items() if _controls(t.content, t.special)}
        self._ids = frozenset(self._id_of.values())
        self._control = _any(self._id_of)
        self._ordinary = _any(t.content for id, t in added.items() if id not in self._ids)
        self._lock = threading.Lock()
        self._copy: _Renamed | None = None

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt; no id of a control token comes from a content."""
        found = _encode(self._whole, prompt.text)
        ids: list[int] = found.ids
        if not prompt.contents:
            return ids
        spans = [found.token_to_chars(at) or (0, 0) for at, id in enumerate(ids) if id in self._ids]
        stripped = [_stripped(prompt.text, span) for span in spans]
        return self._encode_renamed(prompt) if _touch(stripped, prompt.contents) else ids

    def encode_with_specials(self, text: str) -> list[int]:
        """Return the ids of a text outside a prompt, with those that the post-processor adds."""
        ids: list[int] = _encode(self._whole, text, True).ids
        return ids

    def is_special(self, text: str) -> bool:
        """Return whether `text` is a special token."""
        return text in self._special

    def control_spans(self, prompt: Prompt) -> list[Span]:
        """Return the spans of control tokens in the template's own text, in order."""
        gaps = zip(
            [0, *(end for _, end in prompt.contents)],
            [*(start for start, _ in prompt.contents), len(prompt.text)],
            strict=True,
        )
        found = (self._control.finditer(prompt.text, start, end) for start, end in gaps)
        return [match.span() for matches in found for match in matches]

    def last_border(self, prompt: Prompt) -> int:
        """Return the end of the last added token, at which the tokenizer cuts the text."""
        own = self.control_spans(prompt)
        borders, gaps = [0, *(end for _, end in own)], [start for start, _ in own]
        for start, end in zip(borders[:], [*gaps, len(prompt.text)], strict=True):
            borders += [m.end() for m in self._ordinary.finditer(prompt.text, start, end)]
        return max(borders)

    def _encode_renamed(self, prompt: Prompt) -> list[int]:
        with self._lock:
            if self._copy is None:
                self._copy = _Renamed(self._whole, self._id_of)
        text, own = prompt.text, self.control_spans(prompt)
        ids = self._copy.encode(text, own)
        return self._copy.encode_parts(text, own) if ids is None else ids


class _Renamed:
    """Encode with a copy of a tokenizer that knows control tokens by random names only."""

    def __init__(self, whole: Tokenizer, id_of: dict[str, int]) -> None:
        nonce = secrets.token_hex(8)
        self._names = {text: f"\U000f0000{nonce}{id}\U000f0001" for text, id in id_of.items()}
        data = json.loads(whole.to_str())
        for token in data["added_tokens"]:
            token["content"] = self._names.get(token["content"], token["content"])
        self._copy = Tokenizer.from_str(json.dumps(data))
        self._id_of, self._controls = id_of, frozenset(id_of.values())
        self._original = {
            self._copy.token_to_id(self._names[text]): id for text, id in id_of.items()
        }
        # other added tokens may have moved: the copy numbers what it adds anew
        for token in data["added_tokens"]:
            self._original.setdefault(self._copy.token_to_id(token["content"]), token["id"])

    def encode(self, text: str, own: list[Span]) -> list[int] | None:
        """Return the ids with control tokens at `own` only; None if the copy missed a name."""
        parts, at = [], 0
        for start, end in own:
            parts += [text[at:start], self._names[text[start:end]]]
            at = end
        renamed = "".join([*parts, text[at:]])
        named = {self._copy.token_to_id(name) for name in self._names.values()}
        found = _encode(self._copy, renamed)
        if sum(id in named for id in found.ids) != len(own):
            return None
        ids: list[int] = []
        for place, id in enumerate(found.ids):
            if id in self._original:
                ids.append(self._original[id])
            elif id in self._controls:  # the model itself has the token's text in its vocabulary
                start, end = found.token_to_chars(place) or (0, 0)
                ids += self._spelled(renamed[start:end])
            else:
                ids.append(id)
        return ids

    def encode_parts(self, text: str, own: list[Span]) -> list[int]:
        """Return the ids of a text whose parts between control tokens are encoded separately."""
        ids: list[int] = []
        at = 0
        for start, end in own:
            ids += [*(self.encode(text[at:start], []) or []), self._id_of[text[start:end]]]
            at = end
        return [*ids, *(self.encode(text[at:], []) or [])]

    def _spelled(self, text: str) -> list[int]:
        ids = (id for char in text for id in _encode(self._copy, char).ids)
        return [self._original.get(id, id) for id in ids if id not in self._controls]


def _encode(tokenizer: Tokenizer, text: str, specials: bool = False) -> Encoding:
    """Encode one text.

    The library keeps the GIL for a single text and releases it for a batch, whose threads cost
    more than a short text takes.
    """
    if len(text) < _LONG:
        return tokenizer.encode(text, add_special_tokens=specials)
    return tokenizer.encode_batch([text], add_special_tokens=specials)[0]


def _any(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches the longest of `tokens` at a position."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _controls(text: str, special: bool) -> bool:
    """Return whether an added token steers the model: a special one, or one written as markup.

    Tokenizers also add letters, runs of spaces, bytes, and pieces of JSON or file names that
    their base vocabulary lacks: a model knows ordinary text by these.
    """
    return special or bool(_MARKUP.fullmatch(text.strip()) and not _BYTE.fullmatch(text))


def _stripped(text: str, span: Span) -> Span:
    """Return the span of a token without the white space that it took from its neighbours."""
    found = text[span[0] : span[1]]
    start = span[0] + len(found) - len(found.lstrip())
    return start, max(start, span[0] + len(found.rstrip()))


def _touch(spans: list[Span], contents: tuple[Span, ...]) -> bool:
    """Return whether any of `spans` overlaps any of `contents`; both are in order."""
    at = 0
    for start, end in spans:
        while at < len(contents) and contents[at][1] <= start:
            at += 1
        if at < len(contents) and contents[at][0] < end:
            return True
    return False


__all__ = ["PromptEncoder"]
