"""Prompts that continue a conversation, with the tokens that are known already.

The template decides what the model sees, and sampled tokens are never encoded again. So a prompt is
rendered whole, from the messages as they were first received, and compared with the recorded
prompt: up to the first difference its tokens are the recorded ones, from there on its text is
encoded. An answer keeps its sampled tokens if the text that the template shows for it means the
same. If the template drops a part of it in the history, as Qwen3's drops reasoning, the template's
text is encoded.

This may take long, so it runs in a pool of threads and not on the event loop.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from drawloom.engine.api.engine import Delta
from drawloom.engine.sequence import FinishReason
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import ConfigError, ContextTooLong
from drawloom.prompts import Prompt, clip
from drawloom.runtime.server.answer import Answer
from drawloom.runtime.server.conversation import Boundary, ChatTurn, Match, Record, RecordedAnswer
from drawloom.runtime.server.history import Entry, read_entry
from drawloom.runtime.server.openai_encoding import message
from drawloom.runtime.server.openai_requests import Message
from drawloom.tools.chat_template import ChatTemplate

T = TypeVar("T")
_WORKERS = 2
_SLICE = 1 << 16
_PART = "\ufffd"
"""Text of a character whose last bytes are missing."""
_POOL = ThreadPoolExecutor(_WORKERS, "drawloom-prompts")


async def in_pool(work: Callable[..., T], *arguments: Any) -> T:
    """Run a function in one of the pool's threads."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, work, *arguments)


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """Keep a prompt with its tokens.

    Attributes:
        messages: the messages that were rendered.
        boundaries: positions up to which the tokens can be reused.
        known: number of tokens that were taken from a record.
    """

    messages: tuple[dict[str, Any], ...]
    prompt: Prompt
    tokens: list[int]
    boundaries: tuple[Boundary, ...]
    known: int


class PromptBuilder:
    """Render and encode prompts for one model. Thread-safe.

    Attributes:
        limit: tokens of the model's context.
        most_bytes: bytes of the longest text that can fit.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, limit: int) -> None:
        self.template, self.tokenizer, self.limit = template, tokenizer, limit
        self.most_bytes = limit * tokenizer.longest()

    def build(
        self, turn: ChatTurn, tools: list[dict[str, Any]], record: Record | None, match: Match
    ) -> BuiltPrompt:
        """Return the prompt of a request.

        Args:
            turn: the request's messages.
            tools: schemas of the offered tools.
            record: the record that the request agrees with, if any.
            match: how far it agrees.

        Raises:
            ConfigError: the template refuses the messages.
            ContextTooLong: the prompt is far longer than the context.
        """
        recorded = match.agreed - (match.answer is not None)
        first = record.messages[:recorded] if record is not None else ()
        if match.answer is not None:
            first = (*first, match.answer.message)
        messages = (*first, *turn.messages[match.agreed :])
        prompt = self.template.render(list(messages), tools)
        boundaries, tokens = self._known(prompt, messages, tools, record, match)
        at = boundaries[-1].text if boundaries else 0
        known = len(tokens)
        tokens += self.encode(prompt.after(at))
        end = Boundary(len(messages), len(prompt.text), len(tokens))
        return BuiltPrompt(messages, prompt, tokens, (*boundaries, end), known)

    def check(self, text: str | Prompt) -> None:
        """Raise `ContextTooLong` if a text is far too long, before much memory is used for it."""
        prompt = Prompt.of(text)
        length = len(prompt.text)
        if length <= max(self.limit, _SLICE):
            return
        count = 0  # encoded in parts, a text has a few more tokens than as a whole
        for at in range(0, length, _SLICE):
            count += len(self.tokenizer.encode(prompt.slice(at, min(length, at + _SLICE))))
            if count > self.limit * 5 // 4 + 64:
                raise ContextTooLong(f"more than {count} tokens")

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt. Raises `ContextTooLong` as `check` does."""
        self.check(prompt)
        return self.tokenizer.encode(prompt)

    def _known(
        self,
        prompt: Prompt,
        messages: tuple[dict[str, Any], ...],
        tools: list[dict[str, Any]],
        record: Record | None,
        match: Match,
    ) -> tuple[tuple[Boundary, ...], list[int]]:
        """Return boundaries and tokens of the longest prefix with known tokens."""
        if record is None:
            return (), []
        if match.answer is not None:
            through = list(messages[: match.agreed])
            found = self._answered(prompt, through, tools, record, match.answer)
            if found is not None:
                text, sampled = found
                tokens = [*record.tokens, *sampled]
                return (*record.boundaries, Boundary(match.agreed, text, len(tokens))), tokens
        for index in range(len(record.boundaries) - 1, -1, -1):
            boundary = record.boundaries[index]
            if boundary.messages <= match.agreed and _begins(prompt, record.prompt, boundary.text):
                return record.boundaries[: index + 1], list(record.tokens[: boundary.tokens])
        return (), []

    def _answered(
        self,
        prompt: Prompt,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        record: Record,
        answer: RecordedAnswer,
    ) -> tuple[int, list[int]] | None:
        """Return the end of an answer in the prompt's text, and its tokens.

        Returns None if the prompt does not show all of the answer.
        """
        start = len(record.prompt.text)
        if not _begins(prompt, record.prompt, start):
            return None
        sampled = self._sampled(answer)
        for end in dict.fromkeys((sampled.end, "")):
            if prompt.text.startswith(sampled.text + end, start):
                return start + len(sampled.text + end), sampled.through(end)
        for end in filter(None, dict.fromkeys((sampled.end, self.template.eos))):
            at = _own(prompt, end, start)
            if at >= 0:
                shown = prompt.text[start:at]
                alone = partial(self._alone, messages, tools, start, end)
                same = self._same(shown, answer, alone)
                closed = end == sampled.end or sampled.text.endswith(end)
                at += len(end) if closed else 0
                return (at, sampled.through(end)) if same else None
        return None

    def _same(self, shown: str, answer: RecordedAnswer, alone: Callable[[], str]) -> bool:
        """Tell whether the template's text for an answer means the same as the answer.

        Reasoning must be equal. Other parts may be missing if the template never shows them.
        """
        entry = _parsed(shown, answer)
        if entry.thought != answer.entries[0].thought:
            return False
        meant = read_entry(Message.model_validate(answer.message))
        return entry.key == meant.key or entry.key == _parsed(alone(), answer).key

    def _alone(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], start: int, end: str
    ) -> str:
        """Return the template's text for the last message when no message follows it."""
        try:
            prompt = self.template.render(messages, tools)
        except ConfigError:
            return ""
        return prompt.text[start : max(start, _own(prompt, end, start))]

    def _sampled(self, answer: RecordedAnswer) -> "_Sampled":
        """Return the sampled tokens of the part that the client received."""
        ids, text = list(answer.tokens), answer.text

        def shown(count: int) -> str:
            return self.tokenizer.decode(ids[:count], special=answer.special)

        low, high = 0, len(ids)
        while low < high:  # the fewest tokens that may show all of it
            middle = (low + high) // 2
            enough = len(shown(middle).rstrip(_PART)) >= len(text.rstrip(_PART))
            low, high = (low, middle) if enough else (middle + 1, high)
        through = (n for n in range(low, min(len(ids), low + 4) + 1) if shown(n) == text)
        count, rest = next(through, low), ""
        if shown(count) != text and count and text.startswith(before := shown(count - 1)):
            count, rest = count - 1, text[len(before) :]  # cut within a token
        tokens = ids[:count]
        full = self.tokenizer.decode(tokens, special=True) + rest
        if rest:
            tokens += self.tokenizer.encode(Prompt(rest, ((0, len(rest)),)))
            return _Sampled(tokens, full)
        closing = ids[count : count + 1]
        return _Sampled(tokens, full, self.tokenizer.decode(closing, special=True), closing)


@dataclass(frozen=True, slots=True)
class _Sampled:
    """Keep tokens and text of an answer, and of the token that ended it."""

    tokens: list[int]
    text: str
    end: str = ""
    closing: list[int] | None = None

    def through(self, end: str) -> list[int]:
        """Return the answer's tokens, with the token that ended it if its text is `end`."""
        return [*self.tokens, *(self.closing or ())] if end and end == self.end else self.tokens


def _own(prompt: Prompt, word: str, start: int) -> int:
    """Return the first position of a word in the template's own text; -1 if there is none."""
    at = prompt.text.find(word, start)
    while at >= 0 and any(a < at + len(word) and at < b for a, b in prompt.contents):
        at = prompt.text.find(word, at + 1)
    return at


def _parsed(text: str, answer: RecordedAnswer) -> Entry:
    """Parse a text with the parser of an answer."""
    parsed = Answer(0, "", answer.parser(), calls=answer.calls)
    parsed.feed(Delta("", (), text, finish=FinishReason.STOP))
    return read_entry(Message.model_validate(message(parsed)))


def _begins(prompt: Prompt, known: Prompt, at: int) -> bool:
    """Tell whether two prompts are the same up to a position."""
    same = prompt.text[:at] == known.text[:at]
    return same and clip(prompt.contents, 0, at) == clip(known.contents, 0, at)


__all__ = ["BuiltPrompt", "PromptBuilder", "in_pool"]
