"""The tokens of a prompt that continues a conversation.

The template says what the model sees; what was sampled stays as it was sampled. So a prompt is
rendered whole, of the messages as they first came, and compared with what was rendered before: up
to the first place where the two differ its tokens are those that are known, from there on they are
computed from its text. An answer stays as it was sampled if the text that the template shows for it
means the same; if the template leaves out some of it in a history, as Qwen3's does with thoughts,
it becomes what the template says.

All of this may take long and runs in threads of a pool, not on the event loop.
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
from drawloom.runtime.server.conversation import ChatTurn, Mark, Match, Record, RecordedAnswer
from drawloom.runtime.server.history import Entry, read_entry
from drawloom.runtime.server.openai_encoding import message
from drawloom.runtime.server.openai_requests import Message
from drawloom.tools.chat_template import ChatTemplate

T = TypeVar("T")
_WORKERS = 2
_SLICE = 1 << 16
_PART = "\ufffd"
"""What a character is decoded to as long as its last bytes are missing."""
_POOL = ThreadPoolExecutor(_WORKERS, "drawloom-prompts")


async def in_pool(work: Callable[..., T], *arguments: Any) -> T:
    """Run work that may take long in one of the pool's few threads."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, work, *arguments)


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """A prompt with its tokens, of which the first `known` are taken from a record."""

    messages: tuple[dict[str, Any], ...]
    prompt: Prompt
    tokens: list[int]
    marks: tuple[Mark, ...]
    known: int


class PromptBuilder:
    """Renders and encodes prompts for one model. Thread-safe.

    Args:
        limit: most tokens that the model holds.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, limit: int) -> None:
        self.template, self.tokenizer, self.limit = template, tokenizer, limit
        self.most_bytes = limit * tokenizer.longest()

    def build(
        self, turn: ChatTurn, tools: list[dict[str, Any]], record: Record | None, match: Match
    ) -> BuiltPrompt:
        """Return the prompt of a request that agrees so far with a record.

        Raises `ConfigError` for messages that the template refuses, `ContextTooLong`.
        """
        told = match.agreed - (match.answer is not None)
        first = record.messages[:told] if record is not None else ()
        if match.answer is not None:
            first = (*first, match.answer.message)
        messages = (*first, *turn.messages[match.agreed :])
        prompt = self.template.render(list(messages), tools)
        marks, tokens = self._known(prompt, messages, tools, record, match)
        at = marks[-1].text if marks else 0
        known = len(tokens)
        tokens += self.encode(prompt.after(at))
        end = Mark(len(messages), len(prompt.text), len(tokens))
        return BuiltPrompt(messages, prompt, tokens, (*marks, end), known)

    def check(self, text: str | Prompt) -> None:
        """Raise `ContextTooLong` for what is far too long, before much memory is spent on it."""
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
    ) -> tuple[tuple[Mark, ...], list[int]]:
        """Return the longest beginning of which tokens are known: its marks and its tokens."""
        if record is None:
            return (), []
        if match.answer is not None:
            through = list(messages[: match.agreed])
            found = self._answered(prompt, through, tools, record, match.answer)
            if found is not None:
                text, sampled = found
                tokens = [*record.tokens, *sampled]
                return (*record.marks, Mark(match.agreed, text, len(tokens))), tokens
        for index in range(len(record.marks) - 1, -1, -1):
            mark = record.marks[index]
            if mark.messages <= match.agreed and _begins(prompt, record.prompt, mark.text):
                return record.marks[: index + 1], list(record.tokens[: mark.tokens])
        return (), []

    def _answered(
        self,
        prompt: Prompt,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        record: Record,
        answer: RecordedAnswer,
    ) -> tuple[int, list[int]] | None:
        """Return where the answer ends in a prompt that shows all of it, and its tokens."""
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
        """Tell whether a text of the template means all that an answer does, its thought included,
        or at least all that the template ever shows of it."""
        entry = _parsed(shown, answer)
        if entry.thought != answer.entries[0].thought:
            return False
        meant = read_entry(Message.model_validate(answer.message))
        return entry.key == meant.key or entry.key == _parsed(alone(), answer).key

    def _alone(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], start: int, end: str
    ) -> str:
        """Return how the template shows the last of these messages with nothing behind it."""
        try:
            prompt = self.template.render(messages, tools)
        except ConfigError:
            return ""
        return prompt.text[start : max(start, _own(prompt, end, start))]

    def _sampled(self, answer: RecordedAnswer) -> "_Sampled":
        """Return the tokens of what the client was told, without those behind a stop string."""
        ids, told = list(answer.tokens), answer.text

        def shown(count: int) -> str:
            return self.tokenizer.decode(ids[:count], special=answer.special)

        low, high = 0, len(ids)
        while low < high:  # the fewest tokens that may show all of it
            middle = (low + high) // 2
            enough = len(shown(middle).rstrip(_PART)) >= len(told.rstrip(_PART))
            low, high = (low, middle) if enough else (middle + 1, high)
        through = (n for n in range(low, min(len(ids), low + 4) + 1) if shown(n) == told)
        count, rest = next(through, low), ""
        if shown(count) != told and count and told.startswith(before := shown(count - 1)):
            count, rest = count - 1, told[len(before) :]  # cut within a token
        tokens = ids[:count]
        text = self.tokenizer.decode(tokens, special=True) + rest
        if rest:
            tokens += self.tokenizer.encode(Prompt(rest, ((0, len(rest)),)))
            return _Sampled(tokens, text)
        closing = ids[count : count + 1]
        return _Sampled(tokens, text, self.tokenizer.decode(closing, special=True), closing)


@dataclass(frozen=True, slots=True)
class _Sampled:
    """Tokens and text of an answer, and of the token that ended it."""

    tokens: list[int]
    text: str
    end: str = ""
    closing: list[int] | None = None

    def through(self, end: str) -> list[int]:
        """Return the tokens up to where the answer ends, its end included if it is `end`."""
        return [*self.tokens, *(self.closing or ())] if end and end == self.end else self.tokens


def _own(prompt: Prompt, word: str, start: int) -> int:
    """Return the first place of a word in the template's own text; -1 if there is none."""
    at = prompt.text.find(word, start)
    while at >= 0 and any(a < at + len(word) and at < b for a, b in prompt.contents):
        at = prompt.text.find(word, at + 1)
    return at


def _parsed(text: str, answer: RecordedAnswer) -> Entry:
    """Read the text of an answer as the answer itself was read."""
    parsed = Answer(0, "", answer.parser(), calls=answer.calls)
    parsed.feed(Delta("", (), text, finish=FinishReason.STOP))
    return read_entry(Message.model_validate(message(parsed)))


def _begins(prompt: Prompt, known: Prompt, at: int) -> bool:
    """Tell whether two prompts are the same up to a position."""
    same = prompt.text[:at] == known.text[:at]
    return same and clip(prompt.contents, 0, at) == clip(known.contents, 0, at)


__all__ = ["BuiltPrompt", "PromptBuilder", "in_pool"]
