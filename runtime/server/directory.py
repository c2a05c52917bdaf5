"""Directory of the programs behind the server, with limits on their number.

Programs of different callers never meet: a named program is found by tenant and name, a program of
the runtime by its id in a separate table, and a nameless program by the content of its
conversations, within one tenant.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from drawloom.ids import new_id
from drawloom.runtime.execution.budget import Account
from drawloom.runtime.server.conversation import IncomingRequest, Match, PlainRecord, Record

_NAMELESS = 1024
_NAMED = 4096
_TOKENS = 1 << 24
"""Limits: nameless programs, named programs, and tokens in the records of idle ones."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Identify the sender of a request.

    Attributes:
        tenant: the tenant that it belongs to.
        name: the name it gives its program, if any.
        runtime_program: id of the runtime's program whose environment the request comes from.
    """

    tenant: str = "default"
    name: str | None = None
    runtime_program: str | None = None


@dataclass(slots=True, eq=False)
class HttpConversation:
    """Keep one conversation of a program.

    Attributes:
        name: its name at the scheduler and the engine.
        record: its content at the end of its last request.
        tool: the tool that was called last; part of the next call's state in the execution graph.
        call_kinds: kinds of the tool calls of the last answer.
        busy: a request extends it now.
        superseded: another request took its place (see `sessions`). Its record is kept, its KV is
            not.
    """

    name: str
    record: Record | PlainRecord | None = None
    tool: str = ""
    call_kinds: list[str] = field(default_factory=list)
    busy: bool = False
    superseded: bool = False

    @property
    def size(self) -> int:
        """Return the number of tokens of the record."""
        return self.record.size if self.record is not None else 0


@dataclass(slots=True, eq=False)
class HttpProgram:
    """Keep a program behind the server.

    Attributes:
        id: unique name at the scheduler.
        named: its client gave it a name.
        label: its name for its client.
        account: budget of a program of the runtime itself, which sends requests from inside its
            environment; None for programs of clients. Such a program is admitted and ended by the
            runtime.
        admitted: its admission; None while the scheduler does not know it: before its first
            request, and while it is suspended.
        issued_calls: ids of all tool calls in its answers; kept for nameless programs.
        running: number of its requests in progress.
        last_seen: time of its last request by the monotonic clock, in seconds.
        ended: it was released.
        had_concurrent: it had several requests at a time.
        resumes_superseded: it continued a conversation that had been superseded.
    """

    id: str
    named: bool
    tenant: str
    label: str
    account: Account | None = None
    admitted: asyncio.Future[None] | None = None
    conversations: dict[str, HttpConversation] = field(default_factory=dict)
    issued_calls: set[str] = field(default_factory=set)
    running: int = 0
    last_seen: float = 0.0
    ended: bool = False
    had_concurrent: bool = False
    resumes_superseded: bool = False

    @property
    def linear(self) -> bool:
        """Return True if it has had one conversation at a time so far."""
        return not (self.had_concurrent or self.resumes_superseded)

    @property
    def current_conversations(self) -> list[HttpConversation]:
        """Return the conversations that are not superseded."""
        return [one for one in self.conversations.values() if not one.superseded]

    def describe(self, now: float) -> dict[str, Any]:
        """Return its entry in ``/v1/programs``.

        Args:
            now: seconds of the monotonic clock.
        """
        current = self.current_conversations
        return {
            "program_id": self.label,
            "tenant": self.tenant,
            "named": self.named,
            "status": "running" if self.running else "idle",
            "requests": self.running,
            "conversations": len(current),
            "tokens": sum(conversation.size for conversation in current),
            "idle_s": 0.0 if self.running else round(now - self.last_seen, 3),
        }


class Directory:
    """Index programs by name and by the content of their conversations."""

    def __init__(self) -> None:
        self.runtime_programs: dict[str, HttpProgram] = {}
        self._named: dict[tuple[str, str], HttpProgram] = {}
        self._nameless: dict[str, HttpProgram] = {}
        self._idle: dict[HttpProgram, int] = {}  # the longest silent first; tokens of each
        self._tokens = 0
        self._starts: dict[tuple[str, bytes], dict[str, tuple[HttpProgram, HttpConversation]]] = {}

    def __len__(self) -> int:
        return len(self.runtime_programs) + len(self._named) + len(self._nameless)

    def __iter__(self) -> Iterator[HttpProgram]:
        return chain(self.runtime_programs.values(), self._named.values(), self._nameless.values())

    # --- programs -------------------------------------------------------------------------

    def resolve(self, caller: Caller) -> HttpProgram | None:
        """Return the program that a caller names, or None.

        A nameless program can be named by the id that its answers carried.
        """
        if caller.runtime_program is not None:
            return self.runtime_programs.get(caller.runtime_program)
        if caller.name is None:
            return None
        named = self._named.get((caller.tenant, caller.name))
        other = self._nameless.get(caller.name)
        return named or (other if other is not None and other.tenant == caller.tenant else None)

    def find(self, caller: Caller, request: IncomingRequest) -> HttpProgram | None:
        """Return the program of a request, by its name or by its content; None if it is new."""
        if caller.runtime_program is not None or caller.name is not None:
            return self.resolve(caller)
        turns, kin, replaced = [], [], []
        for program, conversation, match in self._matches(caller.tenant, request):
            idle = not conversation.busy and not conversation.superseded
            if match.whole and not conversation.busy:
                turns.append((match.agreed, program))
            elif (idle and match.answers) or not program.issued_calls.isdisjoint(
                request.calls(match.agreed)
            ):
                kin.append((match.agreed, program))  # a branch, or an edited history
            elif idle and match.replaced:
                replaced.append((match.agreed, program))  # may be another client's
        if len(replaced) > 1:
            replaced.clear()
        best = max(reversed(turns or kin or replaced), key=lambda turn: turn[0], default=None)
        return best[1] if best is not None else None

    def add(self, caller: Caller) -> HttpProgram:
        """Create the program of a caller."""
        if caller.name is None:
            id = new_id("http")
            program = self._nameless[id] = HttpProgram(id, False, caller.tenant, id)
            return program
        tenant = caller.tenant.replace("%", "%25").replace(":", "%3A")
        program = HttpProgram(f"{tenant}:{caller.name}", True, caller.tenant, caller.name)
        self._named[caller.tenant, caller.name] = program
        return program

    def remove(self, program: HttpProgram) -> None:
        """Remove a program and all its conversations."""
        for conversation in program.conversations.values():
            self.unindex(program, conversation)
        self.mark_busy(program)
        if program.account is not None:
            self.runtime_programs.pop(program.id, None)
        elif program.named:
            self._named.pop((program.tenant, program.label), None)
        else:
            self._nameless.pop(program.id, None)

    def mark_busy(self, program: HttpProgram) -> None:
        """Boundary a program as busy: `excess` does not return it."""
        self._tokens -= self._idle.pop(program, 0)

    def mark_idle(self, program: HttpProgram) -> None:
        """Boundary a program as idle: `excess` may return it."""
        if program.account is None:
            self._idle[program] = sum(
                conversation.size for conversation in program.conversations.values()
            )
            self._tokens += self._idle[program]

    def excess(self) -> list[HttpProgram]:
        """Return the idle programs beyond the limits, the longest idle first."""
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

    def index(self, program: HttpProgram, conversation: HttpConversation) -> None:
        """Add a conversation of a nameless program to the index by content."""
        if program.named or conversation.record is None:
            return
        start = (program.tenant, conversation.record.start)
        self._starts.setdefault(start, {})[conversation.name] = (program, conversation)
        program.issued_calls |= conversation.record.issued_calls

    def unindex(self, program: HttpProgram, conversation: HttpConversation) -> None:
        """Remove a conversation from the index by content."""
        if program.named or conversation.record is None:
            return
        start = (program.tenant, conversation.record.start)
        if (found := self._starts.get(start)) is not None:
            found.pop(conversation.name, None)
            if not found:
                del self._starts[start]

    def best_match(
        self, tenant: str, request: IncomingRequest
    ) -> tuple[Record | PlainRecord, Match] | None:
        """Return the record of a tenant that agrees most with a request, and its match."""
        found = [
            (conversation.record, match)
            for _, conversation, match in self._matches(tenant, request)
            if conversation.record is not None and match.agreed
        ]
        return max(found, key=lambda one: one[1].agreed) if found else None

    def _matches(
        self, tenant: str, request: IncomingRequest
    ) -> list[tuple[HttpProgram, HttpConversation, Match]]:
        found = self._starts.get((tenant, request.start), {})
        return [
            (program, conversation, request.match(conversation.record))
            for program, conversation in found.values()
            if conversation.record is not None
        ]


__all__ = ["Caller", "Directory", "HttpConversation", "HttpProgram"]
