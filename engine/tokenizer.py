"""A checkpoint's tokenizer, and text that grows with the tokens."""

from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer
from tokenizers.decoders import DecodeStream

from drawloom.engine.encoding import PromptEncoder
from drawloom.errors import CheckpointError
from drawloom.prompts import Prompt


class Tokenizer:
    """Text to ids and back. Control tokens are recognised in trusted text, none are added."""

    def __init__(self, tokenizer: _Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size()
        self._prompts = PromptEncoder(tokenizer)
        self._added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        path = folder / "tokenizer.json"
        if not path.exists():
            raise CheckpointError(f"{path} does not exist: the model needs a fast tokenizer")
        try:
            return cls(_Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} cannot be read: {error}") from None

    def encode(self, text: str | Prompt) -> list[int]:
        """Return the ids of a text. In a plain string every control token is recognised; in a
        `Prompt` only those of the template's own text, none that touches a content."""
        return self._prompts.encode(Prompt.of(text))

    def settled(self, text: str | Prompt) -> list[int]:
        """Return ids that `text`, followed by anything whatever, begins with; none where that
        cannot be known.

        Held back are the start of a special token and the last pre-token; before trailing white
        space one more, because the patterns in use split white space by what follows it.
        """
        prompt, whole = Prompt.of(text), self._tokenizer
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
        text: str = self._tokenizer.decode(ids, skip_special_tokens=not special)
        return text

    def hides(self, text: str) -> bool:
        """Return whether `text` is a special token, which decoding leaves out by default."""
        return self._prompts.special(text)

    def id_of(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def source(self) -> str:
        """The tokenizer as the JSON that it was read from."""
        text: str = self._tokenizer.to_str()
        return text

    def stream(self, stop: tuple[str, ...] = (), *, special: bool = False) -> "TextStream":
        return TextStream(self._tokenizer, stop, special)


class TextStream:
    """The text of a growing sequence, cut before the first stop string.

    What could still become a stop string is held back until it is decided.
    """

    def __init__(self, tokenizer: _Tokenizer, stop: tuple[str, ...], special: bool = False) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._decoder = DecodeStream(skip_special_tokens=not special)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token makes certain; a partial character waits for its rest."""
        piece = self._decode(token)
        if not self._stop or self.stopped:
            return "" if self.stopped else piece
        text = self._held + piece
        cuts = [at for s in self._stop if (at := text.find(s)) >= 0]
        if cuts:
            self.stopped, self._held = True, ""
            return text[: min(cuts)]
        keep = max(_overlap(text, s) for s in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decode(self, token: int) -> str:
        return self._decoder.step(self._tokenizer, token) or ""

    def flush(self) -> str:
        """What was held back, when no more tokens come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


__all__ = ["TextStream", "Tokenizer"]
