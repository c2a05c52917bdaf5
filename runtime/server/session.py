"""Session of one HTTP request."""

from dataclasses import dataclass, field

from drawloom.runtime.server.conversation import Match, PlainRecord, Record
from drawloom.runtime.server.directory import HttpConversation, HttpProgram


@dataclass(slots=True, eq=False)
class Session:
    """Bind one request to a program and a conversation, which is busy until the request ends.

    Attributes:
        record: the record whose tokens the prompt may begin with.
        match: how far the request agrees with `record`.
        parent: the busy conversation that this one is forked from.
        replaces: the request supersedes what its conversation holds.
        tokens: the prompt; set before `SessionTable.submit`.
    """

    program: HttpProgram
    conversation: HttpConversation
    record: Record | PlainRecord | None
    match: Match
    parent: HttpConversation | None = None
    replaces: bool = False
    tokens: list[int] = field(default_factory=list)


__all__ = ["Session"]
