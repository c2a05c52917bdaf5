"""Answers, accumulated from what the engine generates.

A stream sends the parts of an answer and a whole answer is their sum, so the two agree in content,
calls, reasoning, log-probabilities and finish reason. `openai_encoding` writes both as JSON.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from drawloom.engine.api.engine import Delta, RequestUsage
from drawloom.engine.sequence import FinishReason
from drawloom.tools.parsers import Closed, Named, Parser, Piece, Reasoning, Text
from drawloom.tools.tool_call import new_call_id

TokenText = Callable[[int], str]


class PlainParser:
    """Parse an answer for which no tools were offered: all of it is content."""

    def feed(self, text: str) -> list[Piece]:
        """Return the text as content."""
        return [Text(text)] if text else []

    def end(self) -> list[Piece]:
        """Return nothing: no text is held back."""
        return []


@dataclass(frozen=True, slots=True)
class ContentPart:
    """Append text to the content."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """Append text to the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """Begin a tool call, or append to the arguments of one.

    Attributes:
        index: position of the call in the answer.
        arguments: JSON text to append.
        id: the call's id; empty if the call was begun by an earlier part.
        name: name of the tool; empty likewise.
    """

    index: int
    arguments: str
    id: str = ""
    name: str = ""


Part = ContentPart | ReasoningPart | CallPart


@dataclass(frozen=True, slots=True)
class TokenScore:
    """Text and log-probability of a sampled token, and of the most likely ones in its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """Everything that a stream sends of one delta.

    Attributes:
        parts: what was appended to the answer.
        first: the answer begins with these parts.
        finish: the finish reason in OpenAI's words, with the last update.
        scores: scores of the tokens since the last update with parts; None if not asked for.
    """

    parts: tuple[Part, ...] = ()
    first: bool = False
    finish: str | None = None
    scores: tuple[TokenScore, ...] | None = None


@dataclass(slots=True)
class Call:
    """Accumulate a tool call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Answer:
    """Accumulate one answer.

    Attributes:
        index: position among the choices of the request.
        tokens: all sampled tokens.
        call_kinds: kinds of the completed calls, for the scheduler.
        calls: tool calls by index.
        scores: scores of all tokens.
        usage: set by the last delta.
    """

    def __init__(
        self,
        index: int,
        turn: str,
        parser: Parser,
        *,
        calls: bool,
        several: bool = True,
        token_text: TokenText | None = None,
    ) -> None:
        """
        Args:
            index: position among the choices of the request.
            turn: unique name of the turn, from which call ids are derived.
            parser: separates text, reasoning and calls.
            calls: calls may come, so white space around them is no content.
            several: more than one call may come; if not, text after the first is dropped.
            token_text: returns the text of a token; None if no log-probabilities are wanted.
        """
        self.index, self._turn, self._parser = index, turn, parser
        self._trims, self._single, self._token_text = calls, calls and not several, token_text
        self.tokens: list[int] = []
        self.call_kinds: list[str] = []
        self.calls: dict[int, Call] = {}
        self.scores: list[TokenScore] = []
        self.usage: RequestUsage | None = None
        self._finish: FinishReason | None = None
        self._text: list[str] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._space = ""  # white space that is content only if content follows
        self._began = False
        self._unsent_scores: list[TokenScore] = []

    # --- accumulating ---------------------------------------------------------------------

    def feed(self, delta: Delta) -> Update:
        """Append what the engine generated and return what a stream sends of it."""
        self.tokens += delta.tokens
        self._score(delta)
        parts: list[Part] = []
        # a single call may end anywhere in the text, so this is parsed by characters
        for text in delta.text if self._single else (delta.text,):
            if not self.call_done:
                self._text.append(text)
                parts += self._parse(self._parser.feed(text))
        finish = None
        if delta.finish is not None:
            self._finish, self.usage = delta.finish, delta.usage
            if not self.call_done:
                parts += self._parse(self._parser.end())
            parts += self._add(self._trailing_content())
            finish = self.finish_reason
        if not parts and finish is None:
            return Update()
        first, self._began = not self._began, True
        scores = None
        if self._token_text is not None:
            scores, self._unsent_scores = tuple(self._unsent_scores), []
        return Update(tuple(parts), first, finish, scores)

    @property
    def call_done(self) -> bool:
        """True if only one call may be made and it is complete."""
        return self._single and bool(self.call_kinds)

    def _parse(self, pieces: list[Piece]) -> list[Part]:
        return [part for piece in pieces for part in self._add(self._parts(piece))]

    def _parts(self, piece: Piece) -> Iterable[Part]:
        if isinstance(piece, Text):
            return self._content_parts(piece.text)
        if isinstance(piece, Reasoning):
            return [ReasoningPart(piece.text)] if piece.text else []
        if isinstance(piece, Named):
            return [self._begin_call(piece.index, piece.name, "")]
        self.call_kinds.append(piece.call.kind)
        return [self._close_call(piece)]

    def _content_parts(self, text: str) -> list[Part]:
        """Hold back white space until content follows; a call swallows it."""
        text = self._space + text
        if self.calls and not self._content:
            text = text.lstrip()
        kept = text.rstrip() if self._trims else text
        self._space = text[len(kept) :]
        return [ContentPart(kept)] if kept else []

    def _trailing_content(self) -> list[Part]:
        """Return held back content; an answer without calls has content, even if empty."""
        if self.calls or (self._content and not self._space):
            return []
        return [ContentPart(self._space)]

    def _begin_call(self, index: int, name: str, arguments: str) -> CallPart:
        return CallPart(index, arguments, new_call_id(self._turn, index), name)

    def _close_call(self, piece: Closed) -> CallPart:
        """Return the arguments of a call; a name that was streamed before is not changed."""
        index, call = piece.index, piece.call
        arguments = json.dumps(call.arguments) if call.error is None else call.raw
        if index not in self.calls:
            return self._begin_call(index, call.name, arguments)
        return CallPart(index, arguments)

    def _add(self, parts: Iterable[Part]) -> list[Part]:
        """Append parts to the answer and return them."""
        added = list(parts)
        for part in added:
            if isinstance(part, ContentPart):
                self._content.append(part.text)
            elif isinstance(part, ReasoningPart):
                self._reasoning.append(part.text)
            elif part.index in self.calls:
                self.calls[part.index].arguments += part.arguments
            else:
                self.calls[part.index] = Call(part.id, part.name, part.arguments)
        return added

    def _score(self, delta: Delta) -> None:
        if (text := self._token_text) is None:
            return
        tops = delta.tops or ((),) * len(delta.tokens)
        for token, logprob, top in zip(delta.tokens, delta.logprobs, tops, strict=False):
            likely = tuple((text(one), value) for one, value in top)
            score = TokenScore(text(token), logprob, likely)
            self._unsent_scores.append(score)
            self.scores.append(score)

    # --- the answer so far ----------------------------------------------------------------

    @property
    def text(self) -> str:
        """Return the text that was parsed."""
        return "".join(self._text)

    @property
    def content(self) -> str | None:
        """Return the content; None if there is none."""
        return "".join(self._content) if self._content else None

    @property
    def reasoning(self) -> str:
        """Return the reasoning; empty if there is none."""
        return "".join(self._reasoning)

    @property
    def tool(self) -> str:
        """Return the name of the last call; empty if there is none."""
        return next(reversed(self.calls.values())).name if self.calls else ""

    @property
    def finish_reason(self) -> str:
        """Return the finish reason in OpenAI's words."""
        if self._finish is FinishReason.LENGTH:
            return "length"
        return "tool_calls" if self.calls else "stop"

    @property
    def scored(self) -> bool:
        """True if log-probabilities are wanted."""
        return self._token_text is not None


__all__ = [
    "Answer",
    "Call",
    "CallPart",
    "ContentPart",
    "Part",
    "PlainParser",
    "ReasoningPart",
    "TokenScore",
    "Update",
]
