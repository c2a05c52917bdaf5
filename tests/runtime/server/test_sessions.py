"""SessionTable behind the server: more clients than every bound, and none meets another."""

import asyncio
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drawloom.prompts import Prompt
from drawloom.runtime.execution.budget import Account, Budget
from drawloom.runtime.scheduler.events import ConversationEnded, ProgramEnded, ProgramSubmitted
from drawloom.runtime.server import directory
from drawloom.runtime.server import sessions as module
from drawloom.runtime.server.conversation import (
    ChatTurn,
    PlainRecord,
    Record,
    RecordedAnswer,
    TextRequest,
    packed,
)
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.history import read_entry
from drawloom.runtime.server.openai_requests import Message
from drawloom.runtime.server.session import Session
from drawloom.runtime.server.sessions import SessionTable
from tests.lanes import examples

NAMES = ["job", "acme:job", "job:job", "\0job"]
TENANTS = ["default", "acme", "acme:job"]


SAID = {"role": "assistant", "content": "said"}


class _Engine:
    class info:
        id = "e"


class _Dispatcher:
    """Hears what the scheduler would."""

    def __init__(self) -> None:
        self.engine = _Engine()
        self.submitted: set[str] = set()
        self.conversations_ended: set[str] = set()

    def expect_admission(self, program: str) -> asyncio.Future[None]:
        return asyncio.get_event_loop().create_future()

    def emit(self, event: Any) -> None:
        if isinstance(event, ProgramSubmitted):
            assert event.program not in self.submitted, "submitted twice: two programs, one id"
            self.submitted.add(event.program)
        elif isinstance(event, ProgramEnded):
            self.submitted.discard(event.program)
        elif isinstance(event, ConversationEnded):
            self.conversations_ended.add(event.conversation)

    async def settle(self) -> None: ...


def _turn(messages: list[dict[str, Any]]) -> ChatTurn:
    return ChatTurn.read([Message.model_validate(m) for m in messages])


def _record(session: Session, turn: ChatTurn, message: dict[str, Any]) -> Record:
    said = Message.model_validate(message)
    answer = RecordedAnswer(
        (read_entry(said),), said.rendered(), packed([7]), str(message["content"])
    )
    record = session.record if isinstance(session.record, Record) else None
    entries = turn.continued(record, session.match)
    return Record(entries, turn.messages, Prompt(""), packed([1, 2, 3]), (), (answer,))


class _Conversation:
    """A client: who it is, and what was said so far. Some say the same as others."""

    def __init__(self, subject: str, caller: Caller) -> None:
        self.caller = caller
        nameless = caller == Caller(caller.tenant)
        self.owner = (caller.tenant, subject) if nameless else caller
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": subject}]
        self.program: Any = None
        self.turns = 0


class ManyClients(RuleBasedStateMachine):
    """Clients of all kinds come, speak, leave, are released, more of them than any bound."""

    bounds: ClassVar = {"_NAMELESS": 3, "_NAMED": 3, "_TOKENS": 10, "_CONVERSATIONS": 2}

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.patch = pytest.MonkeyPatch()
        for name, bound in self.bounds.items():
            self.patch.setattr(module if name == "_CONVERSATIONS" else directory, name, bound)
        self.dispatcher: Any = _Dispatcher()

        async def make() -> SessionTable:
            return SessionTable(self.dispatcher)

        self.sessions = self.loop.run_until_complete(make())
        self.conversations: list[_Conversation] = []
        self.open: list[tuple[Session, _Conversation, ChatTurn]] = []
        self.owners: dict[Any, Any] = {}
        self.count = 0

    def _ask(self, one: _Conversation) -> None:
        turn = _turn(one.messages)
        session = self.sessions.begin(one.caller, turn)
        program = session.program
        assert self.owners.setdefault(program, one.owner) == one.owner, "two clients met"
        assert program.tenant == one.caller.tenant
        alone = sum(other.owner == one.owner for other in self.conversations) == 1
        if alone and one.program is not None and not one.program.ended:
            assert program is one.program, "a conversation lost its program"
        one.program = program
        session.tokens = [1, 2, 3]
        self.sessions.submit(session, 0, 0)
        self.open.append((session, one, turn))

    @rule(
        kind=st.sampled_from(["nameless", "nameless", "named", "inside"]),
        name=st.sampled_from(NAMES),
        tenant=st.sampled_from(TENANTS),
        subject=st.sampled_from("ab"),
    )
    def a_client_comes(self, kind: str, name: str, tenant: str, subject: str) -> None:
        caller = Caller(tenant, name if kind == "named" else None)
        if kind == "inside":
            caller = self.sessions.runtime_caller(name, "default", Account(Budget()))
        self.conversations.append(_Conversation(subject, caller))
        self._ask(self.conversations[-1])

    @precondition(lambda self: self.conversations)
    @rule(data=st.data())
    def it_goes_on(self, data: Any) -> None:
        busy = [one for _, one, _ in self.open]
        idle = [one for one in self.conversations if one not in busy]
        if idle:
            one = data.draw(st.sampled_from(idle))
            if one.caller.runtime_program is not None:
                self.sessions.runtime_caller(
                    one.caller.runtime_program, "default", Account(Budget())
                )
            self._ask(one)

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        ends=st.sampled_from(["answered", "answered", "broken"]),
        calls=st.booleans(),
    )
    def an_answer_ends(self, data: Any, ends: str, calls: bool) -> None:
        session, one, turn = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        if ends == "broken":
            self.sessions.finish(session)
            return
        one.turns += 1
        self.count += 1
        said: dict[str, Any] = {"role": "assistant", "content": f"answer {one.turns}"}
        if calls:
            function = {"name": "f", "arguments": "{}"}
            said["tool_calls"] = [{"id": f"{self.count:09}", "function": function}]
        self.sessions.finish(session, _record(session, turn, said))
        one.messages += [said, {"role": "user", "content": "next"}]

    @rule(name=st.sampled_from(NAMES), tenant=st.sampled_from(TENANTS))
    def a_program_is_released(self, name: str, tenant: str) -> None:
        mine = [p for p in self.sessions.directory if self.owners.get(p) == Caller(tenant, name)]
        assert self.sessions.release(Caller(tenant, name)) is bool(mine)
        assert all(program.ended for program in mine)

    @rule(inside=st.sampled_from(NAMES))
    def a_program_inside_releases_nothing(self, inside: str) -> None:
        assert not self.sessions.release(Caller("default", "x", runtime_program=inside))

    @invariant()
    def what_runs_is_known_and_what_idles_is_bounded(self) -> None:
        if not hasattr(self, "sessions"):
            return
        for session, _, _ in self.open:
            assert session.program.ended or session.program in list(self.sessions.directory)
            assert session.conversation.busy
        conversations = [session.conversation for session, _, _ in self.open]
        assert len(set(map(id, conversations))) == len(conversations), (
            "one conversation, two requests"
        )
        ids = [program.id for program in self.sessions.directory]
        assert len(set(ids)) == len(ids) or any(p.account for p in self.sessions.directory)
        for named, bound in ((True, directory._NAMED), (False, directory._NAMELESS)):
            alike = [p for p in self.sessions.directory if p.named is named and p.account is None]
            running = sum(p.running > 0 for p in alike)
            assert len(alike) <= max(bound, running)
        for program in self.sessions.directory:
            idle = [line for line in program.conversations.values() if not line.busy]
            assert len(idle) <= module._CONVERSATIONS
        idle_tokens = sum(
            line.size
            for p in self.sessions.directory
            if not p.running and p.account is None
            for line in p.conversations.values()
        )
        assert idle_tokens <= directory._TOKENS

    def teardown(self) -> None:
        if not hasattr(self, "sessions"):
            return
        for session, _, _ in self.open:
            self.sessions.finish(session)
        known = self.sessions.directory
        self.loop.run_until_complete(self.sessions.close())
        assert not self.dispatcher.submitted
        assert not known._starts and not known._idle
        assert len(known) == known._tokens == 0
        self.patch.undo()
        asyncio.set_event_loop(None)
        self.loop.close()


TestManyClients = ManyClients.TestCase
TestManyClients.settings = settings(
    max_examples=examples(80), stateful_step_count=40, deadline=None
)


@given(st.text(":%a"), st.text(":%a"), st.text(":%a"))
def test_no_two_names_have_one_program(a: str, b: str, c: str) -> None:
    names = {(f"{a}:{b}", c), (a, f"{b}:{c}"), (a.replace(":", "%3A"), f"{b}:{c}")}
    found = {directory.Directory().add(Caller(*name)).id for name in names}
    assert len(found) == len(names)


async def test_the_same_words_of_two_tenants_are_two_programs() -> None:
    dispatcher: Any = _Dispatcher()
    programs = SessionTable(dispatcher)
    one = _Conversation("hello", Caller())
    found = []
    for tenant in ("default", "acme", "default"):
        turn = _turn(one.messages)
        session = programs.begin(Caller(tenant), turn)
        programs.finish(session, _record(session, turn, SAID))
        found.append(session.program)
        if len(found) == 1:
            one.messages += [SAID, {"role": "user", "content": "next"}]
    assert found[0] is found[2] is not found[1]
    await programs.close()


async def test_more_nameless_programs_at_once_than_are_kept_are_all_answered() -> None:
    dispatcher: Any = _Dispatcher()
    programs = SessionTable(dispatcher)
    count = directory._NAMELESS + 40
    opened = []
    for index in range(count):
        turn = _turn([{"role": "user", "content": str(index)}])
        session = programs.begin(Caller(), turn)
        session.tokens = [1]
        programs.submit(session, 0, 0)
        opened.append((session, turn))
    assert len({session.program.id for session, _ in opened}) == count == len(programs)
    for session, turn in opened:
        programs.finish(session, _record(session, turn, {"role": "assistant", "content": "a"}))
    assert len(programs) == directory._NAMELESS
    await programs.close()


@pytest.mark.parametrize("other", ["default", "acme"])
async def test_a_nameless_program_is_named_by_its_id_in_its_own_tenant_only(other: str) -> None:
    dispatcher: Any = _Dispatcher()
    programs = SessionTable(dispatcher)
    turn = _turn([{"role": "user", "content": "hello"}])
    session = programs.begin(Caller(), turn)
    programs.finish(session, _record(session, turn, {"role": "assistant", "content": "a"}))
    again = programs.begin(Caller(other, session.program.label), turn)
    assert (again.program is session.program) is (other == "default")
    programs.finish(again)
    await programs.close()


@pytest.mark.parametrize("told", ["Thought: four.\n", "Thought: four.\nObservation"])
async def test_text_that_begins_with_what_was_told_is_the_next_turn(told: str) -> None:
    """What was sampled has a mark that the client is not shown, and the rest of a stop string."""
    dispatcher: Any = _Dispatcher()
    programs = SessionTable(dispatcher)
    prompt = "Question\n"
    session = programs.begin(Caller(), TextRequest(prompt))
    sampled = f"{prompt}{told}<|end|>: made"
    programs.finish(session, PlainRecord(sampled, packed([1, 2]), shown=prompt + told))
    for text in (sampled, prompt + told):
        again = programs.begin(Caller(), TextRequest(text + "\nObservation: 4"))
        assert again.conversation is session.conversation and again.match.whole
        programs.finish(again)
    other = programs.begin(Caller(), TextRequest("Question?"))
    assert other.program is not session.program
    programs.finish(other)
    await programs.close()
