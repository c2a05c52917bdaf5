"""Sessions: HTTP requests, assigned to programs and conversations.

Every request belongs to a program. A client that names its program keeps it until it releases it,
or sends nothing for `ttl` seconds. A nameless client is recognised by its messages: a request that
begins with everything a conversation was sent and answered is its next turn, and a request that
shares an answer or a tool call with a conversation belongs to the same program. The scheduler makes
no difference between the two kinds, and neither kind ends between two turns.

A nameless program is over when its client stays away (`idle_limit.py`). Until then it counts as a
waiting program, since it is scheduled by its attained service, its calls and its lease. The lease
ends earlier, and from then on the KV is cache like any other. `ProgramEnded` then tells the
scheduler how many calls such programs make. The conversations stay known here: a client that does
return continues them, as a new program to the scheduler.

An abandoned conversation holds no KV either. While a program has one conversation at a time, a
request that does not continue it supersedes it: the conversation goes on from the common tokens,
and the KV of the rest is evicted first. The superseded record is kept. If its client continues it
after all, the program has several conversations and keeps each of them.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from drawloom.engine.api.engine import Delta, Grammar
from drawloom.engine.sequence import SamplingParams
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.dispatch.step_driver import LlmStepSpec, run_llm_step
from drawloom.runtime.execution.budget import Account
from drawloom.runtime.scheduler.events import (
    CLIENT,
    ConversationEnded,
    Forked,
    ProgramEnded,
    ProgramSubmitted,
)
from drawloom.runtime.server.conversation import IncomingRequest, Match, PlainRecord, Record
from drawloom.runtime.server.directory import Caller, Directory, HttpConversation, HttpProgram
from drawloom.runtime.server.early_stop import generate_until
from drawloom.runtime.server.errors import ProgramReleased
from drawloom.runtime.server.idle_limit import IdleLimit
from drawloom.runtime.server.session import Session

AGENT = "http-program"
"""The agent name under which the scheduler learns from HTTP clients."""
_OUTPUT = 256
"""Output tokens that a request without a limit is expected to have."""
_CONVERSATIONS = 8
"""Idle conversations kept for each program."""
_SWEEP_SECONDS = 1.0


class SessionTable:
    """Assign requests to programs and conversations, and run their LLM calls."""

    def __init__(self, dispatcher: Dispatcher, ttl: float = 300.0) -> None:
        """Start the periodic sweep.

        Args:
            dispatcher: the runtime's dispatcher.
            ttl: seconds for which an idle program is kept.
        """
        self.dispatcher, self.ttl = dispatcher, ttl
        self.directory = Directory()
        self._steps = self._conversations = 0
        self._idle_limit = IdleLimit()
        self._sweeper = asyncio.create_task(self._sweep())

    def __len__(self) -> int:
        return len(self.directory)

    async def close(self) -> None:
        """End all programs and wait until their effects are carried out."""
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        for program in list(self.directory):
            self._release(program)
        await self.dispatcher.settle()

    def describe(self) -> list[dict[str, Any]]:
        """Return the answer's entries of ``/v1/programs``, one for each program."""
        now = time.monotonic()
        return [program.describe(now) for program in self.directory]

    # --- assigning requests ---------------------------------------------------------------

    def runtime_caller(self, id: str, tenant: str, account: Account) -> Caller:
        """Return the caller that stands for a program of the runtime itself.

        Requests from inside an environment belong to the program that holds the environment.

        Args:
            id: the program's id.
            tenant: the program's tenant.
            account: the program's budget, which its requests are charged to.
        """
        program = self.directory.runtime_programs.get(id)
        if program is None:
            program = HttpProgram(id, True, tenant, id, account)
            self.directory.runtime_programs[id] = program
        program.last_seen = time.monotonic()
        return Caller(tenant, runtime_program=id)

    def begin(self, caller: Caller, request: IncomingRequest) -> Session:
        """Open a session for a request: in the conversation it continues, or in a new one.

        One request at a time extends a conversation; a concurrent one with its prefix forks it.

        Raises:
            ProgramReleased: the caller is inside an environment whose program has ended.
        """
        program = self.directory.find(caller, request)
        if program is None:
            if caller.runtime_program is not None:
                raise ProgramReleased(caller.runtime_program)
            program = self.directory.add(caller)
        elif not program.named and not program.running:
            self._idle_limit.observe(time.monotonic() - program.last_seen)
        session = self._find(program, request)
        program.had_concurrent |= program.running > 0
        session.conversation.busy = True
        program.running += 1
        self.directory.mark_busy(program)
        self._evict_excess()
        return session

    def _find(self, program: HttpProgram, request: IncomingRequest) -> Session:
        found = [
            (conversation, conversation.record, request.match(conversation.record))
            for conversation in program.conversations.values()
            if conversation.record is not None
        ]
        found.sort(key=lambda one: one[2].agreed)  # stable: of equals the latest is last
        idle = [one for one in found if not one[0].busy]
        current = [one for one in idle if not one[0].superseded]
        for taken in ([o for o in idle if o[2].whole], [o for o in current if o[2].rewritten]):
            if taken:
                conversation, record, match = taken[-1]
                program.resumes_superseded |= conversation.superseded
                conversation.superseded = False
                return Session(program, conversation, record, match)
        forked = [one for one in found if one[0].busy and one[2].whole]
        if forked:
            parent, record, match = forked[-1]
            return Session(program, self._new_conversation(program), record, match, parent)
        prefix: tuple[Record | PlainRecord | None, Match] = (None, Match())
        if found and found[-1][2].agreed:
            prefix = found[-1][1:]
        elif not program.named:
            prefix = self.directory.best_match(program.tenant, request) or prefix
        if current and not program.running and self._supersedes(program, current[-1][2]):
            return Session(program, current[-1][0], *prefix, replaces=True)
        return Session(program, self._new_conversation(program), *prefix)

    @staticmethod
    def _supersedes(program: HttpProgram, match: Match) -> bool:
        """Tell whether a request that does not continue a conversation takes its place.

        It does if it shares an answer with it, or if the program has one conversation at a time.
        """
        return program.linear or (match.answers > 0 and not program.resumes_superseded)

    def _new_conversation(self, program: HttpProgram) -> HttpConversation:
        self._conversations += 1  # names are never reused: an ended program may still run
        conversation = HttpConversation(f"{program.id}/{self._conversations}")
        program.conversations[conversation.name] = conversation
        return conversation

    def submit(self, session: Session, known: int, priority: int, output: int = 0) -> None:
        """Announce a request with a prompt to the scheduler.

        Args:
            session: the request's session, with `tokens`.
            known: tokens of the prompt that are taken from `session.record`.
            priority: lower goes first.
            output: the most output tokens; 0 if the request sets no limit.

        Raises:
            ProgramReleased: the program was released meanwhile.
        """
        program, dispatcher = session.program, self.dispatcher
        self._check_alive(program)
        if program.admitted is None and program.account is None:
            program.admitted = dispatcher.expect_admission(program.id)
            expect = len(session.tokens) + (output or _OUTPUT)
            dispatcher.emit(
                ProgramSubmitted(program.id, AGENT, program.tenant, priority, expect_tokens=expect)
            )
        if (parent := session.parent) is not None:
            names = program.id, parent.name, session.conversation.name
            dispatcher.emit(Forked(*names, dispatcher.engine.info.id, known))

    def finish(self, session: Session, record: Record | PlainRecord | None = None) -> None:
        """Close a request's session.

        Args:
            session: the session, as `begin` returned it.
            record: the conversation's new content. None keeps the old content; a conversation
                without content ends.
        """
        program, conversation = session.program, session.conversation
        conversation.busy = False
        program.running -= 1
        program.last_seen = time.monotonic()
        if record is not None:
            self.directory.unindex(program, conversation)
            if session.replaces and not program.ended:
                self._keep_superseded(program, conversation.record)
            conversation.record = record
        if conversation.record is None or program.ended:
            program.conversations.pop(conversation.name, None)
            self.dispatcher.emit(ConversationEnded(program.id, conversation.name))
        else:
            program.conversations[conversation.name] = program.conversations.pop(
                conversation.name, conversation
            )
            self.directory.index(program, conversation)
            self._forget_oldest(program)
        if program.running or program.ended:
            return
        if not program.named and not program.conversations:
            self._release(program)
            return
        self.directory.mark_idle(program)
        self._evict_excess()

    def _keep_superseded(self, program: HttpProgram, record: Record | PlainRecord | None) -> None:
        superseded = self._new_conversation(program)
        superseded.record, superseded.superseded = record, True
        self.directory.index(program, superseded)

    # --- ending programs ------------------------------------------------------------------

    def _evict_excess(self) -> None:
        """End the programs that have been idle for longest, beyond the limits of `Directory`."""
        for program in self.directory.excess():
            self._release(program)

    def _forget_oldest(self, program: HttpProgram) -> None:
        """End all idle conversations of a program but the `_CONVERSATIONS` used last."""
        idle = [one for one in program.conversations.values() if not one.busy]
        for conversation in idle[:-_CONVERSATIONS]:
            del program.conversations[conversation.name]
            self.directory.unindex(program, conversation)
            if not conversation.superseded:
                self.dispatcher.emit(ConversationEnded(program.id, conversation.name))

    def _suspend(self, program: HttpProgram) -> None:
        """End an idle program for the scheduler only.

        Its KV stays in the cache while there is room; its next request submits it again.
        """
        if program.admitted is not None:
            program.admitted = None
            self.dispatcher.emit(ProgramEnded(program.id, keep=True))

    def release(self, caller: Caller) -> bool:
        """End a program and free everything it holds; False if the caller has no such program."""
        program = self.directory.resolve(caller)
        if program is None or program.account is not None:
            return False
        self._release(program)
        return True

    def _release(self, program: HttpProgram) -> None:
        self.directory.remove(program)
        program.ended = True
        if program.account is not None:  # the runtime's program goes on, its conversations end
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
        """Release or suspend idle programs.

        Args:
            now: seconds of the monotonic clock.
        """
        limit = self._idle_limit.seconds
        for program in list(self.directory):
            idle = 0.0 if program.running else now - program.last_seen
            if idle > self.ttl:
                self._release(program)
            elif idle > limit and not program.named:
                self._suspend(program)

    # --- one LLM call ---------------------------------------------------------------------

    async def generate(
        self,
        session: Session,
        params: SamplingParams,
        grammar: Grammar | None,
        choice: int = 0,
        enough: Callable[[], bool] = lambda: False,
        sample: int = 0,
    ) -> AsyncGenerator[Delta, None]:
        """Stream one answer, once the scheduler starts the call.

        Args:
            session: the request's place: its program, its conversation and its tokens.
            params: sampling parameters.
            grammar: what the answer must match.
            choice: which of several answers at a time; each but the first has a conversation of
                its own.
            enough: the answer ends early when this is true.
            sample: which of several answers one after the other. With the seed, this or `choice`
                decides what is drawn, and nothing else: the same request has the same answer.

        Raises:
            BudgetExceeded: for a program that has a budget, and none of it left.
            ProgramReleased: for a program that was released meanwhile.
        """
        program, dispatcher = session.program, self.dispatcher
        if (account := program.account) is not None:
            account.before_llm()
            account.usage.llm_calls += 1
            params = replace(params, max_tokens=max(1, account.output_left(params.max_tokens)))
        conversation = (
            session.conversation.name if not choice else f"{session.conversation.name}.{choice}"
        )
        self._steps += 1
        spec = LlmStepSpec(
            program=program.id,
            conversation=conversation,
            step=f"{program.id}:{self._steps}",
            state=f"http|{session.conversation.tool}",
            prompt=tuple(session.tokens),
            params=params,
            salt=program.tenant.encode("utf-8", "surrogatepass"),
            grammar=grammar,
            noise=str(choice or sample),
        )
        session.conversation.tool, session.conversation.call_kinds = "", []
        await self._admission(program)
        engine = dispatcher.engine
        try:
            async with run_llm_step(dispatcher, spec) as step:
                step.tool_kinds = (CLIENT,)  # also where the client has gone at the last delta
                deltas = step.stream(lambda request: generate_until(engine, request, enough))
                async with aclosing(deltas):
                    async for delta in deltas:
                        yield delta
                step.tool_kinds = tuple(session.conversation.call_kinds) or step.tool_kinds
                if account is not None and (usage := step.usage) is not None:
                    computed = usage.prompt_tokens - usage.cached_tokens
                    account.usage.output_tokens += usage.output_tokens
                    account.usage.tokens += computed + usage.output_tokens
        finally:
            if choice:
                dispatcher.emit(ConversationEnded(program.id, conversation))

    async def _admission(self, program: HttpProgram) -> None:
        """Wait until a program is admitted.

        Raises:
            ProgramReleased: the program was released meanwhile.
            HttpError: the server is shutting down (see `Dispatcher.drain`).
        """
        if (admitted := program.admitted) is None:
            self._check_alive(program)
            return
        await asyncio.wait({admitted})
        self._check_alive(program)
        admitted.result()

    @staticmethod
    def _check_alive(program: HttpProgram) -> None:
        if program.ended:
            raise ProgramReleased(program.label)


__all__ = ["SessionTable"]
