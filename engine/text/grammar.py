"""Constrained decoding: grammars enforced token by token, by llguidance.

llguidance compiles a grammar in about a millisecond, and computes in some 60 microseconds which of
32,000 tokens may follow.
"""

import json
from typing import Any

from drawloom.engine.sequence import Guide
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import ConfigError


class LLGuidance:
    """Compile grammars for one tokenizer. The library and its table are loaded at first use."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: tuple[int, ...]) -> None:
        self._tokenizer, self._eos = tokenizer, eos_ids
        self._table: Any = None

    def guide(self, kind: str, text: str, after: str) -> Guide:
        """Compile a grammar; see `Grammar` for the arguments.

        Raises:
            ConfigError: if it does not compile, with the library's message.
        """
        import llguidance

        if self._table is None:
            eos = self._eos[0] if self._eos else None
            source = self._tokenizer.source()
            self._table = llguidance.LLTokenizer(source, eos_token=eos)
        try:
            matcher = llguidance.LLMatcher(self._table, _compiled(llguidance, kind, text))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"this {kind} grammar cannot be used: {error}") from None
        if matcher.is_error():
            raise ConfigError(f"this {kind} grammar cannot be used: {matcher.get_error()}")
        return _Guide(kind, matcher, self._table.vocab_size, self._tokenizer, after)


def _compiled(llguidance: Any, kind: str, text: str) -> str:
    matcher = llguidance.LLMatcher
    if kind == "json_schema":
        # one way to write each value: a weak model would fill its answer with white space
        spaces = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        grammar = matcher.grammar_from_json_schema(text, overrides=spaces)
    elif kind == "regex":
        grammar = matcher.grammar_from_regex(text)
    elif kind == "choice":
        words = json.loads(text)
        if not isinstance(words, list) or not all(isinstance(w, str) and w for w in words):
            raise ConfigError("a choice is a JSON list of strings")
        if not words:
            raise ConfigError("a choice needs at least one string to choose")
        # one lexeme: as alternatives of a rule, some 2,000 words are more than the parser holds
        choice = " | ".join(json.dumps(word) for word in words)
        grammar = matcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choice}")
    else:
        grammar = matcher.grammar_from_lark(text)
    return str(grammar)


class _Guide:
    """Constrain one sequence by a grammar, which begins behind `after`.

    The library can give up after any token, on a grammar that needs too much work. It then reports
    that it stopped, as it does at the end of an answer.
    """

    def __init__(
        self, kind: str, matcher: Any, size: int, tokenizer: Tokenizer, after: str
    ) -> None:
        self._kind, self._matcher, self._size = kind, matcher, size
        self._text = tokenizer.stream((after,), special=True) if after else None

    def mask(self) -> bytes:
        """Return the allowed tokens: one bit for each token id, lowest first.

        Raises:
            ConfigError: if the library gave up on the grammar.
        """
        if self._text is not None:
            return b"\xff" * -(-self._size // 8)
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]
            raise ConfigError(
                f"this {self._kind} grammar was given up in the middle of the answer, make it "
                f"simpler: {reason}"
            )
        return mask

    def accept(self, token: int) -> None:
        """Advance by a sampled token."""
        if self._text is None:
            self._matcher.consume_token(token)
            return
        self._text.push(token)
        if self._text.stopped:
            self._text = None

    @property
    def complete(self) -> bool:
        """Return whether no token may follow."""
        matcher = self._matcher
        return self._text is None and bool(matcher.is_stopped()) and not matcher.is_error()


__all__ = ["LLGuidance"]
