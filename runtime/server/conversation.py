"""What is kept of a conversation, and how a request is compared with it.

A record has the messages as they first came, the prompt that they made, its tokens, and the answer
as it was sampled. A request that begins, by meaning, with all of a record's messages and its
answer is the next turn of that conversation.
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
    """Return tokens as they are kept: four bytes each."""
    return array("I", tokens)


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """An answer as the client was told it, and as it was sampled.

    Attributes:
        entries: the forms in which a client may send it back; the first is as it was told.
        message: the message for the template.
        tokens: all sampled tokens, also those behind what the client was told.
        text: what the parser was given; with `special`, special tokens are in it.
        parser: makes a parser like the one that read it.
        calls: it could make calls.
    """

    entries: tuple[Entry, ...]
    message: dict[str, Any]
    tokens: "array[int]"
    text: str
    parser: Callable[[], Parser] = PlainParser
    calls: bool = False
    special: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A place where text and tokens of a prompt are known to end together.

    `messages` is how many messages the prompt has up to there.
    """

    messages: int
    text: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Record:
    """A chat after an answer. With `broken`, the answer did not reach its end, and its prompt may
    be sent again."""

    entries: tuple[Entry, ...]
    messages: tuple[dict[str, Any], ...]
    prompt: Prompt
    tokens: "array[int]"
    marks: tuple[Mark, ...]
    answers: tuple[RecordedAnswer, ...]
    broken: bool = False

    @property
    def start(self) -> bytes:
        return beginning(self.entries)

    @property
    def issued_calls(self) -> set[str]:
        """Ids of the calls that the answers made."""
        return set().union(*(_ids(answer.entries[0]) for answer in self.answers))

    @property
    def size(self) -> int:
        return len(self.tokens) + sum(len(answer.tokens) for answer in self.answers[:1])


@dataclass(frozen=True, slots=True)
class PlainRecord:
    """A conversation by `/v1/completions`: text and its tokens, the answer included.

    Attributes:
        shown: the same as far as the client was told it: without special tokens in the answer, nor
            a stop string behind it.
    """

    text: str
    tokens: "array[int]"
    start: bytes = b""
    shown: str = ""

    @property
    def issued_calls(self) -> set[str]:
        return set()

    @property
    def size(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Match:
    """How far a request agrees with a record.

    Attributes:
        agreed: so many messages, or characters, are the same.
        answer: the answer that the request goes on from, if it contains it in its place.
        whole: the request is the next turn.
        rewritten: the request knows the last answer, but its history is another: in a program
            where it can belong to no other conversation, it takes the place of this one.
        replaced: all agrees but for the last answer, in place of which there is another.
        answers: so many answers of the conversation are in what agrees; only its client was told
            them.
    """

    agreed: int = 0
    answer: RecordedAnswer | None = None
    whole: bool = False
    rewritten: bool = False
    replaced: bool = False
    answers: int = 0


class Request(Protocol):
    """What a request sends, to be compared with records."""

    @property
    def start(self) -> bytes: ...

    def match(self, record: Record | PlainRecord) -> Match:
        """Compare with a record."""
        ...

    def calls(self, agreed: int) -> set[str]:
        """Return ids of calls in what the request agrees in with a record, which only those know
        who were told them."""
        ...


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A prompt of `/v1/completions`."""

    text: str
    start: bytes = b""

    def match(self, record: Record | PlainRecord) -> Match:
        """Compare with a record: it is continued by text that begins with all of its own, or with
        all that its client was told."""
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
    """The messages of a chat request: as they are compared, and as the template takes them. Of all
    its answers it has the keys, and the ids of calls that they mention."""

    entries: tuple[Entry, ...]
    messages: tuple[dict[str, Any], ...]
    start: bytes
    _answers: frozenset[bytes]
    _called: frozenset[str]

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
        told, agreed = len(record.entries), 0
        for mine, known in zip(self.entries, record.entries, strict=False):
            if not mine.same(known):
                break
            agreed += 1
        answer = self._answer(record) if agreed == told else None
        if answer is not None:
            return Match(agreed + 1, answer, whole=True)
        again = agreed == told == len(self.entries)
        whole = (again and record.broken) or (agreed == told and self._retold(record))
        replaced = agreed == told < len(self.entries) and self.entries[told].assistant
        rewritten = not whole and (replaced or again or self._rewrites(record, agreed))
        answers = sum(entry.assistant for entry in self.entries[:agreed])
        return Match(agreed, None, whole, rewritten, replaced and not whole, answers)

    def calls(self, agreed: int) -> set[str]:
        """Return ids of calls in the messages that agree, and those that the text of the next one
        mentions."""
        known = {id for e in self.entries[:agreed] if e.assistant for id in (*_ids(e), *e.mentions)}
        return known.union(*(entry.mentions for entry in self.entries[agreed : agreed + 1]))

    def continued(self, record: Record | None, match: Match) -> tuple[Entry, ...]:
        """Return the entries of the conversation with this request, as they first came."""
        if record is None:
            return self.entries
        told = match.agreed - (match.answer is not None)
        known = record.entries[:told]
        if match.answer is not None:
            forms = match.answer.entries
            known += (next(filter(self.entries[told].same, forms)),)
        return (*known, *self.entries[match.agreed :])

    def _answer(self, record: Record) -> RecordedAnswer | None:
        at = len(record.entries)
        if at >= len(self.entries):
            return None
        mine = self.entries[at]
        return next((a for a in record.answers if any(map(mine.same, a.entries))), None)

    def _retold(self, record: Record) -> bool:
        """Tell whether the answer came back as text that names its calls by their ids, which
        nobody else knows: some clients have no other form for calls."""
        at = len(record.entries)
        mentions = set(self.entries[at].mentions) if at < len(self.entries) else set()
        made = (_ids(answer.entries[0]) for answer in record.answers)
        return any(ids and ids <= mentions for ids in made)

    def _rewrites(self, record: Record, agreed: int) -> bool:
        """Tell whether all that was answered last is here, behind messages that differ."""
        if agreed == len(record.entries):
            return False
        akin = agreed > 0 or any(e.assistant and _ids(e) & self._called for e in record.entries)
        told_all = (answer.entries[0] for answer in record.answers)
        return any(
            ids <= self._called if (ids := _ids(entry)) else akin and entry.key in self._answers
            for entry in told_all
        )


def _ids(entry: Entry) -> set[str]:
    return {id for id in entry.ids if id}


__all__ = [
    "ChatTurn",
    "Mark",
    "Match",
    "PlainRecord",
    "Record",
    "RecordedAnswer",
    "Request",
    "TextRequest",
    "packed",
]
