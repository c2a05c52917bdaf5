"""Tokenizer of a checkpoint, and the streamed text of a growing sequence."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from drawloom.engine.text.encoding import PromptEncoder
from drawloom.errors import CheckpointError
from drawloom.prompts import Prompt

_PARTIAL = "\ufffd"
_WINDOW = 32
_KEPT = 8
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Turn text into token ids and back."""

    def __init__(self, tokenizer: _Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size()
        self._prompts = PromptEncoder(tokenizer)
        self._added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read the tokenizer of a model folder.

        Raises:
            CheckpointError: if it is missing or cannot be read.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            raise CheckpointError(f"{path} does not exist: the model needs a fast tokenizer")
        try:
            return cls(_Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} cannot be read: {error}") from None

    def encode(self, text: str | Prompt) -> list[int]:
        """Return the ids of a text.

        In a plain string every control token is recognised; in a `Prompt` only those of the
        template's own text, none that touches a content.
        """
        return self._prompts.encode(_encodable(text))

    def encode_with_specials(self, text: str) -> list[int]:
        """Return the ids of a text that is no rendered chat.

        They include those that the tokenizer's post-processor adds, as a begin-of-text token.
        """
        return self._prompts.encode_with_specials(_encodable(text).text)

    def settled(self, text: str | Prompt) -> list[int]:
        """Return the ids of `text` that no continuation can change; none if that is unknown.

        The possible start of a special token and the last pre-token are left out; before trailing
        white space one more, because the patterns in use split white space by what follows it.
        """
        prompt, whole = _encodable(text), self._tokenizer
        text, splitter = prompt.text, whole.pre_tokenizer
        if splitter is None or (whole.normalizer and whole.normalizer.normalize_str(text) != text):
            return []
        text = text[: len(text) - max((_overlap(text, a) for a in self._added), default=0)]
        start = self._prompts.last_border(prompt.before(len(text)))
        pieces = splitter.pre_tokenize_str(text[start:])
        while pieces and not text[start:][slice(*pieces[-1][1])].strip():
            pieces.pop()
        cut = start + pieces[-1][1][0] if pieces else start
        return self.encode(prompt.before(cut))

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """Return the text of ids, those outside the vocabulary left out.

        Args:
            special: keep special tokens.
        """
        try:
            text: str = self._tokenizer.decode(ids, skip_special_tokens=not special)
        except OverflowError:
            return self.decode([id for id in ids if 0 <= id < 1 << 32], special=special)
        except BaseException as error:  # the library's panics are no Exception
            if type(error).__name__ != "PanicException":
                raise
            return ""
        return text

    def ids(self) -> frozenset[int]:
        """Return all ids that are tokens; there may be gaps between them."""
        return frozenset(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def hides(self, text: str) -> bool:
        """Return whether `text` is a special token, which decoding leaves out by default."""
        return self._prompts.is_special(text)

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, None if it is unknown."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def longest(self) -> int:
        """Return the most bytes of text that one token can stand for."""
        return max((len(t.encode()) for t in self._tokenizer.get_vocab()), default=1)

    def source(self) -> str:
        """Return the tokenizer as the JSON that it was read from."""
        text: str = self._tokenizer.to_str()
        return text

    def stream(
        self, stop: tuple[str, ...] = (), *, special: bool = False, after: Sequence[int] = ()
    ) -> "TextStream":
        """Return a stream of the text of ids that follow a prompt.

        Args:
            stop: strings at which the text ends.
            special: keep special tokens in the text.
            after: the prompt's ids. The text is what the sequence adds to theirs, a leading space
                included.
        """
        return TextStream(
            lambda ids: self.decode(ids, special=special),
            lambda id: self._shown(id, special),
            stop,
            after,
        )

    def _shown(self, id: int, special: bool) -> str | None:
        """Return the token of an id, None where decoding leaves it out."""
        try:
            token: str | None = self._tokenizer.id_to_token(id)
        except OverflowError:
            return None
        return None if token is None or (self.hides(token) and not special) else token


class TextStream:
    """Stream the text of a growing sequence, cut before the first stop string.

    All pieces together equal the text of all tokens decoded at once. At each token a window of the
    last ids is decoded, and the part of its text that was not sent is sent, except for what later
    tokens can change: a trailing U+FFFD (an incomplete character), a run of byte-fallback tokens
    (decoded as a whole, or as one U+FFFD a byte if it is not UTF-8 as a whole), and the possible
    start of a stop string.

    Args:
        decode: returns the text of ids.
        shown: returns the token of an id, None if the text leaves it out.
        stop: strings at which the text ends.
        after: ids that the sequence follows.

    Attributes:
        stopped: a stop string was found; nothing more is sent.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        shown: Callable[[int], str | None],
        stop: tuple[str, ...] = (),
        after: Sequence[int] = (),
    ) -> None:
        self._decode, self._shown, self._stop = decode, shown, stop
        self._run = 0  # byte-fallback tokens at the end of the window
        self._window = self._tail(after)
        self._prompt: str | None = decode(self._window) if self._window else None
        self._sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain."""
        name = self._shown(token)
        if name is None or self.stopped:
            return ""
        self._window.append(token)
        self._run = self._run + 1 if _is_byte(name) else 0
        if self._run and (not self._stop or (self._run > _WINDOW and self._run % _WINDOW)):
            return ""
        text = self._decode(self._window)
        unsent = self._unsent(text)
        # a sequence that ends at a stop string has no later tokens to change its text
        if (cut := self._cut(unsent.rstrip(_PARTIAL))) is not None:
            self.stopped = True
            return unsent[:cut]
        if self._run:
            return ""
        ready = unsent.removesuffix(_PARTIAL)
        ready = ready[: len(ready) - max((_overlap(ready, s) for s in self._stop), default=0)]
        if ready:
            self._prompt, self._sent = None, len(text) - len(unsent) + len(ready)
        if len(self._window) > _WINDOW:
            self._trim(unsent[len(ready) :])
        return ready

    def flush(self) -> str:
        """Return the text that was held back, at the end of the sequence."""
        if self.stopped:
            return ""
        text = self._decode(self._window) if self._window else ""
        unsent = self._unsent(text)
        self._prompt, self._sent = None, max(self._sent, len(text))
        if (cut := self._cut(unsent)) is not None:
            self.stopped = True
            return unsent[:cut]
        return unsent

    def _unsent(self, text: str) -> str:
        """Return the part of the window's text that was not sent."""
        if self._prompt is None:
            return text[self._sent :]
        if text.startswith(self._prompt):
            return text[len(self._prompt) :]
        # the prompt's last character was completed, or its last run of bytes was spoiled
        kept = _common(self._prompt, text)
        return text[max(kept, len(self._prompt.rstrip(_PARTIAL))) :]

    def _cut(self, text: str) -> int | None:
        return min((at for s in self._stop if (at := text.find(s)) >= 0), default=None)

    def _trim(self, held: str) -> None:
        """Shorten the window to its last ids, if their text does not depend on those before."""
        window = self._tail(self._window)
        text = self._decode(window)
        if len(text) > len(held) and text.endswith(held):
            self._window, self._prompt, self._sent = window, None, len(text) - len(held)

    def _tail(self, ids: Sequence[int]) -> list[int]:
        """Return the last shown ids: at least `_KEPT`, and never a part of a run of bytes."""
        tail: list[int] = []
        for id in reversed(ids):
            name = self._shown(id)
            if name is not None:
                tail.append(id)
                if len(tail) >= _KEPT and not _is_byte(name):
                    break
        tail.reverse()
        return tail


def _encodable(text: str | Prompt) -> Prompt:
    """Return a prompt with U+FFFD for each lone surrogate, which no tokenizer takes."""
    prompt = Prompt.of(text)
    try:
        prompt.text.encode()
    except UnicodeEncodeError:
        return Prompt(_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", prompt.text), prompt.contents)
    return prompt


def _common(text: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(text), len(other)))


def _is_byte(token: str) -> bool:
    """Return whether a token stands for a byte, as ``<0x0A>``."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


__all__ = ["TextStream", "Tokenizer"]
