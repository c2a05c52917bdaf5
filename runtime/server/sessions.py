"""Programs that are only seen through their requests.

Every request belongs to a program. A client that names its program keeps it until it releases it
or is silent for `ttl` seconds; one that names none is recognised by what it sends: a request that
begins with all that a conversation was told and answered is its next turn, and one that begins as
it did up to an answer or a call of its belongs to the same program.
To the scheduler both are one kind of program, and neither is over between two turns.

When is a program over whose client never says so? One with a name after `ttl`: its name may come
back at any time. One without, when it has been silent for `_OVER` times as long as 99 of 100
others were before they came back. Until then it counts as a program that waits, as it must: its
attained service, its calls and its lease are what it is scheduled by. It holds no memory that
others need for so long: its lease, by what was learned of how soon clients return, ends first, and
its KV is cache like any other from then on. After that the scheduler observes its end, as it could
not learn otherwise how many calls such programs make, while it is still known here: who comes back
after all goes on in the same conversation, as a new program to the scheduler.

A conversation that a client gives up holds nothing either. While a program has had but one at a
time, a request that is no turn of it takes its place: the conversation goes on from the tokens
that both begin with, and what followed is the first to be reclaimed. What was given up is put
aside, and if its client goes on with it all the same, the program has several, each of which is
kept.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from drawloom.engine.api.engine import Delta, GenerateRequest, Grammar, RequestUsage
from drawloom.engine.sequence import SamplingParams
from drawloom.graph.quantile_sketch import Sketch
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.execution.budget import Account
from drawloom.runtime.execution.llm_step import spans
from drawloom.runtime.scheduler.events import (
    CLIENT,
    ConversationEnded,
    Forked,
    ProgramEnded,
    ProgramSubmitted,
    StepFailed,
    StepFinished,
    StepReady,
)
from drawloom.runtime.server.conversation import Match, PlainRecord, Record, Request
from drawloom.runtime.server.directory import Caller, Directory, HttpConversation, HttpProgram
from drawloom.runtime.server.early_stop import generate_until
from drawloom.runtime.server.errors import ProgramReleased

AGENT = "http-program"
"""What the scheduler learns of clients under; who answers what called no tool that we see."""
_OUTPUT = 256
_CONVERSATIONS = 8
_SWEEP_SECONDS = 1.0
_OVER, _RETURNS = 4.0, 8  # returns that are seen before they say how long one may be silent
_SILENT, _UNKNOWN = 10.0, 30.0  # seconds; the least, and before that is known


@dataclass(slots=True, eq=False)
class Place:
    """Where a request belongs. Its conversation is busy until it is left.

    Attributes:
        record: what is known of the conversation whose tokens the prompt may begin with.
        match: how far the request agrees with `record`.
        parent: the busy conversation that it branches off.
        instead: it gives up what its conversation holds.
        tokens: the prompt; filled in before `Programs.ready`.
    """

    program: HttpProgram
    conversation: HttpConversation
    record: Record | PlainRecord | None
    match: Match
    parent: HttpConversation | None = None
    instead: bool = False
    tokens: list[int] = field(default_factory=list)


class Programs:
    """The programs behind a server.

    Args:
        ttl: seconds for which a silent program is remembered.
    """

    def __init__(self, dispatcher: Dispatcher, ttl: float = 300.0) -> None:
        self.dispatcher, self.ttl = dispatcher, ttl
        self.known = Directory()
        self._steps = self._conversations = 0
        self._silences = Sketch()
        self._sweeper = asyncio.create_task(self._sweep())

    def __len__(self) -> int:
        return len(self.known)

    async def close(self) -> None:
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        for program in list(self.known):
            self._end(program)
        await self.dispatcher.settle()

    def describe(self) -> list[dict[str, Any]]:
        """Describe every program for people: identity, state, size and idle time in seconds."""
        now = time.monotonic()
        return [
            {
                "program_id": program.label,
                "tenant": program.tenant,
                "named": program.named,
                "status": "running" if program.running else "idle",
                "requests": program.running,
                "conversations": len(program.current_conversations),
                "tokens": sum(conversation.size for conversation in program.current_conversations),
                "idle_s": 0.0 if program.running else round(now - program.seen, 3),
            }
            for program in self.known
        ]

    # --- whose request it is --------------------------------------------------------------

    def inside(self, id: str, tenant: str, account: Account) -> Caller:
        """Return the caller that a program of the runtime is from inside its environment."""
        program = self.known.inside.get(id)
        if program is None:
            program = HttpProgram(id, True, tenant, id, account)
            self.known.inside[id] = program
        program.seen = time.monotonic()
        return Caller(tenant, inside=id)

    def claim(self, caller: Caller, request: Request) -> Place:
        """Return the place of a request: the conversation that it continues, or a new one.

        A conversation that is busy is continued by nobody else: what begins as it did before is a
        fork of it. Raises `ProgramReleased` for a caller inside an environment whose program has
        ended.
        """
        program = self.known.find(caller, request)
        if program is None:
            if caller.inside is not None:
                raise ProgramReleased(caller.inside)
            program = self.known.add(caller)
        elif not program.named and not program.running:
            self._silences.observe(time.monotonic() - program.seen)
        place = self._place(program, request)
        program.concurrent |= program.running > 0
        place.conversation.busy = True
        program.running += 1
        self.known.busy(program)
        self._bound()
        return place

    def _place(self, program: HttpProgram, request: Request) -> Place:
        found = [
            (conversation, conversation.record, request.match(conversation.record))
            for conversation in program.conversations.values()
            if conversation.record is not None
        ]
        found.sort(key=lambda one: one[2].agreed)  # stable: of equals the latest is last
        idle = [one for one in found if not one[0].busy]
        present = [one for one in idle if not one[0].aside]
        for taken in ([o for o in idle if o[2].whole], [o for o in present if o[2].rewritten]):
            if taken:
                conversation, record, match = taken[-1]
                program.returns |= conversation.aside
                conversation.aside = False
                return Place(program, conversation, record, match)
        forked = [one for one in found if one[0].busy and one[2].whole]
        if forked:
            parent, record, match = forked[-1]
            return Place(program, self._conversation(program), record, match, parent)
        begun: tuple[Record | PlainRecord | None, Match] = (None, Match())
        if found and found[-1][2].agreed:
            begun = found[-1][1:]
        elif not program.named:
            begun = self.known.alike(program.tenant, request) or begun
        if present and not program.running and self._gives_up(program, present[-1][2]):
            return Place(program, present[-1][0], begun[0], begun[1], instead=True)
        return Place(program, self._conversation(program), begun[0], begun[1])

    @staticmethod
    def _gives_up(program: HttpProgram, match: Match) -> bool:
        """Tell whether a request that is no turn of a conversation is what became of it: what
        begins with an answer of it, or anything in a program that has one at a time."""
        return program.linear or (match.answers > 0 and not program.returns)

    def _conversation(self, program: HttpProgram) -> HttpConversation:
        """Return a new conversation of a program."""
        self._conversations += 1  # never one name twice: an ended program may still be running
        conversation = HttpConversation(f"{program.id}/{self._conversations}")
        program.conversations[conversation.name] = conversation
        return conversation

    def ready(self, place: Place, known: int, priority: int, output: int = 0) -> None:
        """Tell the scheduler of a request whose prompt is there.

        Args:
            known: so many tokens of the prompt are those of `place.record`.
            output: how many tokens may come, if that is known.

        Raises `ProgramReleased` for a program that was released meanwhile.
        """
        program, dispatcher = place.program, self.dispatcher
        self._alive(program)
        if program.admitted is None and program.account is None:
            program.admitted = dispatcher.expect_admission(program.id)
            expect = len(place.tokens) + (output or _OUTPUT)
            dispatcher.emit(
                ProgramSubmitted(program.id, AGENT, program.tenant, priority, expect_tokens=expect)
            )
        if (parent := place.parent) is not None:
            engine = dispatcher.engine.info.id
            dispatcher.emit(Forked(program.id, parent.name, place.conversation.name, engine, known))

    def leave(self, place: Place, record: Record | PlainRecord | None = None) -> None:
        """End a request. `record` is all that the conversation holds now; with None it holds what
        it held before, and one that held nothing is over."""
        program, conversation = place.program, place.conversation
        conversation.busy = False
        program.running -= 1
        program.seen = time.monotonic()
        if record is not None:
            self.known.forget(program, conversation)
            if place.instead and not program.ended:
                self._put_aside(program, conversation.record)
            conversation.record = record
        if conversation.record is None or program.ended:
            program.conversations.pop(conversation.name, None)
            self.dispatcher.emit(ConversationEnded(program.id, conversation.name))
        else:
            program.conversations[conversation.name] = program.conversations.pop(
                conversation.name, conversation
            )
            self.known.remember(program, conversation)
            self._forget_some(program)
        if program.running or program.ended:
            return
        if not program.named and not program.conversations:
            self._end(program)
            return
        self.known.idle(program)
        self._bound()

    def _put_aside(self, program: HttpProgram, record: Record | PlainRecord | None) -> None:
        """Keep what a conversation was, should its client go on with it after all."""
        aside = self._conversation(program)
        aside.record, aside.aside = record, True
        self.known.remember(program, aside)

    def _bound(self) -> None:
        """Keep so many programs and no more: of those that are idle the longest silent end."""
        for program in self.known.surplus():
            self._end(program)

    def _forget_some(self, program: HttpProgram) -> None:
        """Keep so many conversations of a program: those that were used last."""
        idle = [
            conversation for conversation in program.conversations.values() if not conversation.busy
        ]
        for conversation in idle[:-_CONVERSATIONS]:
            del program.conversations[conversation.name]
            self.known.forget(program, conversation)
            if not conversation.aside:
                self.dispatcher.emit(ConversationEnded(program.id, conversation.name))

    def _rest(self, program: HttpProgram) -> None:
        """Take a silent program for over, as far as the scheduler is concerned. Its KV stays as
        long as there is room, and its next turn submits it again."""
        if program.admitted is not None:
            program.admitted = None
            self.dispatcher.emit(ProgramEnded(program.id, keep=True))

    @property
    def _patience(self) -> float:
        """The seconds of silence after which a program without a name is taken for over."""
        usual = self._silences.quantile(0.99)
        if usual is None or self._silences.count < _RETURNS:
            return _UNKNOWN
        return max(_SILENT, _OVER * usual)

    def end(self, caller: Caller) -> bool:
        """End a program: all it held is free. False if the caller has none by that name."""
        program = self.known.named_by(caller)
        if program is None or program.account is not None:
            return False
        self._end(program)
        return True

    def _end(self, program: HttpProgram) -> None:
        self.known.remove(program)
        program.ended = True
        if program.account is not None:  # the program goes on, its conversations here do not
            for conversation in program.conversations:
                self.dispatcher.emit(ConversationEnded(program.id, conversation))
        if program.admitted is not None:
            program.admitted.cancel()
            self.dispatcher.emit(ProgramEnded(program.id))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """End the programs that have been silent for too long at a time of the monotonic clock."""
        patience = self._patience
        for program in list(self.known):
            silent = 0.0 if program.running else now - program.seen
            if silent > self.ttl:
                self._end(program)
            elif silent > patience and not program.named:
                self._rest(program)

    # --- one LLM call ---------------------------------------------------------------------

    async def generate(
        self,
        place: Place,
        params: SamplingParams,
        grammar: Grammar | None,
        choice: int = 0,
        enough: Callable[[], bool] = lambda: False,
        sample: int = 0,
    ) -> AsyncGenerator[Delta, None]:
        """Stream one answer, when the scheduler gives leave.

        Args:
            choice: which of several answers at a time; each but the first has a conversation of
            its own. enough: the answer ends early when this is true.
            sample: which of several answers one after the other. With the seed, this or `choice`
                decides what is drawn, and nothing else: the same request has the same answer.

        Raises:
            BudgetExceeded: for a program that has a budget, and none of it left.
            ProgramReleased: for a program that was released meanwhile.
        """
        program, dispatcher = place.program, self.dispatcher
        if (account := program.account) is not None:
            account.before_llm()
            account.usage.llm_calls += 1
            params = replace(params, max_tokens=max(1, account.output_left(params.max_tokens)))
        conversation = (
            place.conversation.name if not choice else f"{place.conversation.name}.{choice}"
        )
        self._steps += 1
        step = f"{program.id}:{self._steps}"
        engine, state = dispatcher.engine.info.id, f"http|{place.conversation.tool}"
        place.conversation.tool, place.conversation.kinds = "", []
        await self._admission(program)
        start = dispatcher.expect_start(step)
        prompt = len(place.tokens)
        usage: RequestUsage | None = None
        dispatcher.emit(
            StepReady(program.id, conversation, step, state, engine, prompt, params.max_tokens)
        )
        try:
            priority = await start
            request = GenerateRequest(
                step, conversation, tuple(place.tokens), params, priority,
                program.tenant.encode("utf-8", "surrogatepass"), grammar,
                noise=str(choice or sample),
            )  # fmt: skip
            context = prompt
            async with aclosing(generate_until(dispatcher.engine, request, enough)) as deltas:
                async for delta in deltas:
                    usage = delta.usage or usage
                    context += len(delta.tokens)
                    await dispatcher.heard(program.id, step, context, delta)
                    yield delta
            if usage is not None:
                self._finished(place, conversation, step, state, usage)
        finally:
            if usage is None:  # its client is gone, or it failed
                dispatcher.emit(StepFailed(program.id, step))
            if choice:
                dispatcher.emit(ConversationEnded(program.id, conversation))

    async def _admission(self, program: HttpProgram) -> None:
        """Wait until the scheduler lets a program run. Raises `ProgramReleased` for one that was
        released meanwhile, and what `Dispatcher.drain` was given."""
        if (admitted := program.admitted) is None:
            self._alive(program)
            return
        await asyncio.wait({admitted})
        self._alive(program)
        admitted.result()

    @staticmethod
    def _alive(program: HttpProgram) -> None:
        if program.ended:
            raise ProgramReleased(program.label)

    def _finished(
        self, place: Place, conversation: str, step: str, state: str, usage: RequestUsage
    ) -> None:
        if (account := place.program.account) is not None:
            account.usage.output_tokens += usage.output_tokens
            account.usage.tokens += usage.prompt_tokens - usage.cached_tokens + usage.output_tokens
        context = usage.prompt_tokens + usage.output_tokens
        computed = usage.prompt_tokens - usage.cached_tokens
        self.dispatcher.emit(
            StepFinished(
                place.program.id, conversation, step, state, self.dispatcher.engine.info.id,
                context, tuple(place.conversation.kinds) or (CLIENT,), computed, *spans(usage),
            )
        )  # fmt: skip


__all__ = ["Place", "Programs"]
