"""Finds the program of a request, and bounds how many are kept.

Programs of different callers never meet: what a client names is found by its tenant and its name,
a program of the runtime by its own id in a table of its own, and a nameless one by what its
conversations hold, among those of the same tenant.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from drawloom.ids import new_id
from drawloom.runtime.execution.budget import Account
from drawloom.runtime.server.conversation import Match, PlainRecord, Record, Request

_NAMELESS = 1024
_NAMED = 4096
_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a tenant, perhaps with a name for its program, or from inside an environment the
    program of the runtime that has it."""

    tenant: str = "default"
    name: str | None = None
    inside: str | None = None


@dataclass(slots=True, eq=False)
class HttpConversation:
    """One conversation. `record` is what it held at the end of its last request. One that is put
    `aside` was given up for another, as it seemed: it is known, but holds no KV."""

    name: str
    record: Record | PlainRecord | None = None
    tool: str = ""
    kinds: list[str] = field(default_factory=list)
    busy: bool = False
    aside: bool = False

    @property
    def size(self) -> int:
        return self.record.size if self.record is not None else 0


@dataclass(slots=True, eq=False)
class HttpProgram:
    """A program behind the server.

    Attributes:
        id: names it to the scheduler; unlike that of any other caller's program.
        label: names it to its client.
        account: it is a program of the runtime's own that asks from inside its environment: it was
            admitted elsewhere, and ends there.
        admitted: None while the scheduler does not know it: before its first request, and when a
            nameless one has been silent for so long that it is taken for over.
        issued: ids of the calls that its answers made, of a nameless program.
        concurrent: it has had several requests at a time.
        returns: it has gone on with a conversation that had been put aside.
    """

    id: str
    named: bool
    tenant: str
    label: str
    account: Account | None = None
    admitted: asyncio.Future[None] | None = None
    conversations: dict[str, HttpConversation] = field(default_factory=dict)
    issued: set[str] = field(default_factory=set)
    running: int = 0
    seen: float = 0.0
    ended: bool = False
    concurrent: bool = False
    returns: bool = False

    @property
    def linear(self) -> bool:
        """Whether it has had one conversation at a time, as far as it has shown."""
        return not (self.concurrent or self.returns)

    @property
    def current_conversations(self) -> list[HttpConversation]:
        """Those that are not put aside."""
        return [
            conversation for conversation in self.conversations.values() if not conversation.aside
        ]


class Directory:
    """All programs, and where to find their conversations."""

    def __init__(self) -> None:
        self.inside: dict[str, HttpProgram] = {}
        self._named: dict[tuple[str, str], HttpProgram] = {}
        self._nameless: dict[str, HttpProgram] = {}
        self._idle: dict[HttpProgram, int] = {}  # the longest silent first; tokens of each
        self._tokens = 0
        self._starts: dict[tuple[str, bytes], dict[str, tuple[HttpProgram, HttpConversation]]] = {}

    def __len__(self) -> int:
        return len(self.inside) + len(self._named) + len(self._nameless)

    def __iter__(self) -> Iterator[HttpProgram]:
        return chain(self.inside.values(), self._named.values(), self._nameless.values())

    # --- programs -------------------------------------------------------------------------

    def named_by(self, caller: Caller) -> HttpProgram | None:
        """Return the program that a caller names. A nameless one is named by the id that its
        answers carried."""
        if caller.inside is not None:
            return self.inside.get(caller.inside)
        if caller.name is None:
            return None
        named = self._named.get((caller.tenant, caller.name))
        other = self._nameless.get(caller.name)
        return named or (other if other is not None and other.tenant == caller.tenant else None)

    def find(self, caller: Caller, request: Request) -> HttpProgram | None:
        """Return the program of a request: by its name or, if it has none, by what it sends."""
        if caller.inside is not None or caller.name is not None:
            return self.named_by(caller)
        turns, kin, replaced = [], [], []
        for program, line, match in self._alike(caller.tenant, request):
            idle = not line.busy and not line.aside
            if match.whole and not line.busy:
                turns.append((match.agreed, program))
            elif (idle and match.answers) or not program.issued.isdisjoint(
                request.calls(match.agreed)
            ):
                kin.append((match.agreed, program))  # a branch, or a history that was edited
            elif idle and match.replaced:
                replaced.append((match.agreed, program))  # or another's, whom we do not know
        if len(replaced) > 1:
            replaced.clear()
        best = max(reversed(turns or kin or replaced), key=lambda turn: turn[0], default=None)
        return best[1] if best is not None else None

    def add(self, caller: Caller) -> HttpProgram:
        """Make a program for a caller that has none."""
        if caller.name is None:
            id = new_id("http")
            program = self._nameless[id] = HttpProgram(id, False, caller.tenant, id)
            return program
        tenant = caller.tenant.replace("%", "%25").replace(":", "%3A")
        program = HttpProgram(f"{tenant}:{caller.name}", True, caller.tenant, caller.name)
        self._named[caller.tenant, caller.name] = program
        return program

    def remove(self, program: HttpProgram) -> None:
        """Forget a program and all its conversations."""
        for conversation in program.conversations.values():
            self.forget(program, conversation)
        self.busy(program)
        if program.account is not None:
            self.inside.pop(program.id, None)
        elif program.named:
            self._named.pop((program.tenant, program.label), None)
        else:
            self._nameless.pop(program.id, None)

    def busy(self, program: HttpProgram) -> None:
        """Take a program off the list of those that may end."""
        self._tokens -= self._idle.pop(program, 0)

    def idle(self, program: HttpProgram) -> None:
        """Put a program on the list of those that may end."""
        if program.account is None:
            self._idle[program] = sum(
                conversation.size for conversation in program.conversations.values()
            )
            self._tokens += self._idle[program]

    def surplus(self) -> list[HttpProgram]:
        """Return the idle programs that are too many, the longest silent ones."""
        named, nameless = len(self._named) - _NAMED, len(self._nameless) - _NAMELESS
        tokens, over = self._tokens - _TOKENS, []
        for program, size in self._idle.items():
            if max(named, nameless, tokens) <= 0:
                break
            if tokens > 0 or (named if program.named else nameless) > 0:
                over.append(program)
                named -= program.named
                nameless -= not program.named
                tokens -= size
        return over

    # --- conversations of nameless programs -----------------------------------------------

    def remember(self, program: HttpProgram, conversation: HttpConversation) -> None:
        """Make a conversation found by what it holds."""
        if program.named or conversation.record is None:
            return
        start = (program.tenant, conversation.record.start)
        self._starts.setdefault(start, {})[conversation.name] = (program, conversation)
        program.issued |= conversation.record.issued

    def forget(self, program: HttpProgram, conversation: HttpConversation) -> None:
        """Make a conversation found no more."""
        if program.named or conversation.record is None:
            return
        start = (program.tenant, conversation.record.start)
        if (found := self._starts.get(start)) is not None:
            found.pop(conversation.name, None)
            if not found:
                del self._starts[start]

    def alike(self, tenant: str, request: Request) -> tuple[Record | PlainRecord, Match] | None:
        """Return the record of any conversation of the tenant that a request agrees with most."""
        found = [(line.record, match) for _, line, match in self._alike(tenant, request)
                 if line.record is not None and match.agreed]  # fmt: skip
        return max(found, key=lambda one: one[1].agreed) if found else None

    def _alike(
        self, tenant: str, request: Request
    ) -> list[tuple[HttpProgram, HttpConversation, Match]]:
        found = self._starts.get((tenant, request.start), {})
        return [
            (program, conversation, request.match(conversation.record))
            for program, conversation in found.values()
            if conversation.record is not None
        ]


__all__ = ["Caller", "Directory", "HttpConversation", "HttpProgram"]
