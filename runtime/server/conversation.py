"""Records of conversations, and their comparison with requests.

A record has the messages as they were first received, their prompt with its tokens, and the answer
as it was sampled. A request whose messages begin with those of a record and its answer, equal in
meaning, is the next turn of that conversation.
"""

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from drawloom.prompts import Prompt
from drawloom.runtime.server.answer import PlainParser
from drawloom.runtime.server.history import Entry, beginning, read_entry
from drawloom.runtime.server.openai_requests import Message
from drawloom.tools.parsers import Parser


def packed(tokens: Iterable[int]) -> "array[int]":
    """Return tokens as an array of four bytes each."""
    return array("I", tokens)


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """Keep an answer as the client received it, and as it was sampled.

    Attributes:
        entries: the forms in which a client may send it back; the first is the form it received.
        message: the message for the template.
        tokens: all sampled tokens, including those after the part that the client received.
        text: the text that was parsed.
        parser: makes a parser with the options of the one that parsed it.
        calls: calls were allowed.
        special: `text` includes special tokens.
    """

    entries: tuple[Entry, ...]
    message: dict[str, Any]
    tokens: "array[int]"
    text: str
    parser: Callable[[], Parser] = PlainParser
    calls: bool = False
    special: bool = False


@dataclass(frozen=True, slots=True)
class Boundary:
    """Locate a position of a prompt at which text and tokens end together.

    Attributes:
        messages: number of messages before it.
        text: its position in the text, in characters.
        tokens: its position in the tokens.
    """

    messages: int
    text: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Record:
    """Keep a chat with its last answer.

    Attributes:
        entries: the messages of the prompt, for comparison.
        messages: the messages of the prompt, for the template.
        prompt: the rendered prompt.
        tokens: its tokens.
        boundaries: positions of the prompt up to which its tokens can be reused.
        answers: one for each choice.
        broken: the answer was interrupted, so the client may send the prompt again.
    """

    entries: tuple[Entry, ...]
    messages: tuple[dict[str, Any], ...]
    prompt: Prompt
    tokens: "array[int]"
    boundaries: tuple[Boundary, ...]
    answers: tuple[RecordedAnswer, ...]
    broken: bool = False

    @property
    def start(self) -> bytes:
        """Return the digest by which the conversation is found."""
        return beginning(self.entries)

    @property
    def issued_calls(self) -> set[str]:
        """Return the ids of the calls in the answers."""
        return set().union(*(_ids(answer.entries[0]) for answer in self.answers))

    @property
    def size(self) -> int:
        """Return the number of tokens, the answer included."""
        return len(self.tokens) + sum(len(answer.tokens) for answer in self.answers[:1])


@dataclass(frozen=True, slots=True)
class PlainRecord:
    """Keep a conversation of `/v1/completions`.

    Attributes:
        text: prompt and answer.
        tokens: their tokens.
        shown: prompt and answer as the client received it: without special tokens in the answer
            and without a stop string after it.
    """

    text: str
    tokens: "array[int]"
    start: bytes = b""
    shown: str = ""

    @property
    def issued_calls(self) -> set[str]:
        """Return nothing: text has no calls."""
        return set()

    @property
    def size(self) -> int:
        """Return the number of tokens, the answer included."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Match:
    """Describe how far a request agrees with a record.

    Attributes:
        agreed: number of messages, or of characters, that are equal from the start.
        answer: the recorded answer that the request contains in its place.
        whole: the request is the next turn.
        rewritten: the request contains the last answer after a changed history; it supersedes this
            conversation if it can belong to no other one of its program.
        replaced: everything agrees but the last answer, which the request has another message for.
        answers: number of answers among the agreed messages; only the conversation's client has
            received them.
    """

    agreed: int = 0
    answer: RecordedAnswer | None = None
    whole: bool = False
    rewritten: bool = False
    replaced: bool = False
    answers: int = 0


class IncomingRequest(Protocol):
    """Compare the content of a request with records."""

    @property
    def start(self) -> bytes:
        """Return the digest by which its conversation is found."""
        ...

    def match(self, record: Record | PlainRecord) -> Match:
        """Compare with a record."""
        ...

    def calls(self, agreed: int) -> set[str]:
        """Return the ids of calls in the agreed part; only clients that received them know them.

        Args:
            agreed: number of messages or characters, as in `Match`.
        """
        ...


@dataclass(frozen=True, slots=True)
class TextRequest:
    """Compare a prompt of `/v1/completions` with records."""

    text: str
    start: bytes = b""

    def match(self, record: Record | PlainRecord) -> Match:
        """Compare with a record.

        Text that begins with the record's text continues it, and so does text that begins with the
        part of it that the client received.
        """
        if not isinstance(record, PlainRecord):
            return Match()
        known = [text for text in (record.text, record.shown) if text]
        agreed = max((len(text) for text in known if self.text.startswith(text)), default=0)
        return Match(agreed, whole=agreed > 0)

    def calls(self, agreed: int) -> set[str]:
        """Return nothing: text has no calls."""
        return set()


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """Compare the messages of a chat request with records.

    Attributes:
        entries: the messages, for comparison.
        messages: the messages, for the template.
        start: the digest by which the conversation is found.
    """

    entries: tuple[Entry, ...]
    messages: tuple[dict[str, Any], ...]
    start: bytes
    _answers: frozenset[bytes]  # keys of all answers
    _called: frozenset[str]  # ids of calls that the answers contain or mention

    @classmethod
    def read(cls, messages: list[Message]) -> "ChatTurn":
        """Read the messages of a request."""
        entries = tuple(read_entry(message) for message in messages)
        answers = [entry for entry in entries if entry.assistant]
        calls = frozenset(id for entry in answers for id in (*entry.ids, *entry.mentions))
        rendered = tuple(message.rendered() for message in messages)
        keys = frozenset(entry.key for entry in answers)
        return cls(entries, rendered, beginning(entries), keys, calls)

    def match(self, record: Record | PlainRecord) -> Match:
        """Compare with a record, message by message."""
        if not isinstance(record, Record):
            return Match()
        recorded, agreed = len(record.entries), 0
        for mine, known in zip(self.entries, record.entries, strict=False):
            if not mine.same(known):
                break
            agreed += 1
        answer = self._answer(record) if agreed == recorded else None
        if answer is not None:
            return Match(agreed + 1, answer, whole=True)
        again = agreed == recorded == len(self.entries)
        whole = (again and record.broken) or (agreed == recorded and self._returned_as_text(record))
        replaced = agreed == recorded < len(self.entries) and self.entries[recorded].assistant
        rewritten = not whole and (replaced or again or self._rewrites(record, agreed))
        answers = sum(entry.assistant for entry in self.entries[:agreed])
        return Match(agreed, None, whole, rewritten, replaced and not whole, answers)

    def calls(self, agreed: int) -> set[str]:
        """Return the ids of calls in the agreed messages and in the text of the next message."""
        known = {id for e in self.entries[:agreed] if e.assistant for id in (*_ids(e), *e.mentions)}
        return known.union(*(entry.mentions for entry in self.entries[agreed : agreed + 1]))

    def continued(self, record: Record | None, match: Match) -> tuple[Entry, ...]:
        """Return the entries of record and request, each as it was first received."""
        if record is None:
            return self.entries
        recorded = match.agreed - (match.answer is not None)
        known = record.entries[:recorded]
        if match.answer is not None:
            forms = match.answer.entries
            known += (next(filter(self.entries[recorded].same, forms)),)
        return (*known, *self.entries[match.agreed :])

    def _answer(self, record: Record) -> RecordedAnswer | None:
        at = len(record.entries)
        if at >= len(self.entries):
            return None
        mine = self.entries[at]
        return next((a for a in record.answers if any(map(mine.same, a.entries))), None)

    def _returned_as_text(self, record: Record) -> bool:
        """Tell whether the answer came back as text that mentions its calls by their ids.

        Some clients have no other form for calls; nobody else knows the ids.
        """
        at = len(record.entries)
        mentions = set(self.entries[at].mentions) if at < len(self.entries) else set()
        made = (_ids(answer.entries[0]) for answer in record.answers)
        return any(ids and ids <= mentions for ids in made)

    def _rewrites(self, record: Record, agreed: int) -> bool:
        """Tell whether the request contains the last answer after messages that differ."""
        if agreed == len(record.entries):
            return False
        akin = agreed > 0 or any(e.assistant and _ids(e) & self._called for e in record.entries)
        answers = (answer.entries[0] for answer in record.answers)
        return any(
            ids <= self._called if (ids := _ids(entry)) else akin and entry.key in self._answers
            for entry in answers
        )


def _ids(entry: Entry) -> set[str]:
    return {id for id in entry.ids if id}


__all__ = [
    "Boundary",
    "ChatTurn",
    "IncomingRequest",
    "Match",
    "PlainRecord",
    "Record",
    "RecordedAnswer",
    "TextRequest",
    "packed",
]
