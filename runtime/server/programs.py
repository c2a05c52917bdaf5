"""Programs that are only seen through their requests.

Every request belongs to a program and is scheduled as one. A client that names its program keeps
it until it releases it or is silent for `ttl` seconds; a client that names none is recognised by
what it sends: a request that begins with all that a conversation was told and answered is its next
turn, and one that begins as it did up to a call of its belongs to the same program.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from drawloom.engine.base import Delta, GenerateRequest, Grammar, Usage
from drawloom.engine.sequence import SamplingParams
from drawloom.events import (
    Forked,
    LineageEnded,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
)
from drawloom.runtime.budget import Account
from drawloom.runtime.live import Live
from drawloom.runtime.llmcall import spans
from drawloom.runtime.server.conversation import Match, PlainRecord, Record, Request
from drawloom.runtime.server.directory import Caller, Directory, HttpProgram, Lineage
from drawloom.runtime.server.early import generate_until
from drawloom.runtime.server.errors import ProgramReleased

_OUTPUT = 256
_LINEAGES = 8
_HELD_SECONDS = 0.25
_SWEEP_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Place:
    """Where a request belongs. Its lineage is busy until it is left.

    Attributes:
        record: what is known of the conversation whose tokens the prompt may begin with.
        match: how far the request agrees with `record`.
        parent: the busy conversation that it branches off.
        tokens: the prompt; filled in before `Programs.ready`.
    """

    program: HttpProgram
    lineage: Lineage
    record: Record | PlainRecord | None
    match: Match
    parent: Lineage | None = None
    tokens: list[int] = field(default_factory=list)


class Programs:
    """The programs behind a server.

    Args:
        ttl: seconds for which a silent program is remembered.
    """

    def __init__(self, live: Live, ttl: float = 300.0) -> None:
        self.live, self.ttl = live, ttl
        self.known = Directory()
        self._steps = self._lineages = 0
        self._sweeper = asyncio.create_task(self._sweep())

    def __len__(self) -> int:
        return len(self.known)

    async def close(self) -> None:
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        for program in list(self.known):
            self._end(program)
        await self.live.settle()

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
                "conversations": len(program.lineages),
                "tokens": sum(lineage.size for lineage in program.lineages.values()),
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
        """Return the place of a request: the lineage that it continues, or a new one.

        A lineage that is busy is continued by nobody else: what begins as it did before is a fork
        of it. Raises `ProgramReleased` for a caller inside an environment whose program has ended.
        """
        program = self.known.find(caller, request)
        if program is None:
            if caller.inside is not None:
                raise ProgramReleased(caller.inside)
            program = self.known.add(caller)
        place = self._place(program, request)
        place.lineage.busy = True
        program.running += 1
        self.known.busy(program)
        self._bound()
        return place

    def _place(self, program: HttpProgram, request: Request) -> Place:
        found = [
            (lineage, lineage.record, request.match(lineage.record))
            for lineage in program.lineages.values()
            if lineage.record is not None
        ]
        found.sort(key=lambda one: one[2].agreed)  # stable: of equals the latest is last
        idle = [one for one in found if not one[0].busy]
        for taken in ([o for o in idle if o[2].whole], [o for o in idle if o[2].rewritten]):
            if taken:
                lineage, record, match = taken[-1]
                return Place(program, lineage, record, match)
        self._lineages += 1  # never one name twice: an ended program may still be running
        lineage = Lineage(f"{program.id}/{self._lineages}")
        program.lineages[lineage.name] = lineage
        forked = [one for one in found if one[0].busy and one[2].whole]
        if forked:
            parent, record, match = forked[-1]
            return Place(program, lineage, record, match, parent)
        if found and found[-1][2].agreed:
            return Place(program, lineage, found[-1][1], found[-1][2])
        alike = self.known.alike(program.tenant, request) if not program.named else None
        return Place(program, lineage, *(alike or (None, Match())))

    def ready(self, place: Place, known: int, priority: int, output: int = 0) -> None:
        """Tell the scheduler of a request whose prompt is there.

        Args:
            known: so many tokens of the prompt are those of `place.record`.
            output: how many tokens may come, if that is known.

        Raises `ProgramReleased` for a program that was released meanwhile.
        """
        program, live = place.program, self.live
        self._alive(program)
        if program.admitted is None and program.account is None:
            program.admitted = live.expect_admission(program.id)
            expect = len(place.tokens) + (output or _OUTPUT)
            kind = "http-program" if program.named else "http-request"
            live.emit(
                ProgramSubmitted(program.id, kind, program.tenant, priority, expect_tokens=expect)
            )
        if (parent := place.parent) is not None:
            engine = live.engine.info.id
            live.emit(Forked(program.id, parent.name, place.lineage.name, engine, known))

    def leave(self, place: Place, record: Record | PlainRecord | None = None) -> None:
        """End a request. `record` is all that the lineage holds now; with None it holds what it
        held before, and one that held nothing is over."""
        program, lineage = place.program, place.lineage
        lineage.busy = False
        program.running -= 1
        program.seen = time.monotonic()
        if record is not None:
            self.known.forget(program, lineage)
            lineage.record = record
        if lineage.record is None or program.ended:
            program.lineages.pop(lineage.name, None)
            self.live.emit(LineageEnded(program.id, lineage.name))
        else:
            program.lineages[lineage.name] = program.lineages.pop(lineage.name, lineage)
            self.known.remember(program, lineage)
            self._forget_some(program)
        if program.running or program.ended:
            return
        if not program.named and not program.lineages:
            self._end(program)
            return
        self.known.idle(program)
        if not program.named:
            self._rest(program)
        self._bound()

    def _bound(self) -> None:
        """Keep so many programs and no more: of those that are idle the longest silent end."""
        for program in self.known.surplus():
            self._end(program)

    def _forget_some(self, program: HttpProgram) -> None:
        """Keep so many conversations of a program: those that were used last."""
        idle = [lineage for lineage in program.lineages.values() if not lineage.busy]
        for lineage in idle[:-_LINEAGES]:
            del program.lineages[lineage.name]
            self.known.forget(program, lineage)
            self.live.emit(LineageEnded(program.id, lineage.name))

    def _rest(self, program: HttpProgram) -> None:
        """Let the scheduler forget a program that has nothing to do; its next turn submits it
        again. Its KV stays as long as there is room."""
        if program.admitted is not None:
            program.admitted = None
            self.live.emit(ProgramEnded(program.id, keep=True))

    def _make_room(self) -> None:
        """Let the program that has been silent for longest rest: somebody is held."""
        idle = [p for p in self.known if not p.running and p.admitted is not None]
        if idle:
            self._rest(min(idle, key=lambda program: program.seen))

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
            for lineage in program.lineages:
                self.live.emit(LineageEnded(program.id, lineage))
        if program.admitted is not None:
            program.admitted.cancel()
            self.live.emit(ProgramEnded(program.id))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = time.monotonic()
            for program in list(self.known):
                if not program.running and now - program.seen > self.ttl:
                    self._end(program)

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
            choice: which of several answers at a time; each but the first has a lineage of its own.
            enough: the answer ends early when this is true.
            sample: which of several answers one after the other. With the seed, this or `choice`
                decides what is drawn, and nothing else: the same request has the same answer.

        Raises:
            BudgetExceeded: for a program that has a budget, and none of it left.
            ProgramReleased: for a program that was released meanwhile.
        """
        program, live = place.program, self.live
        if (account := program.account) is not None:
            account.before_llm()
            account.usage.llm_calls += 1
            params = replace(params, max_tokens=max(1, account.output_left(params.max_tokens)))
        lineage = place.lineage.name if not choice else f"{place.lineage.name}.{choice}"
        self._steps += 1
        step = f"{program.id}:{self._steps}"
        engine, state = live.engine.info.id, f"http|{place.lineage.tool}"
        place.lineage.tool, place.lineage.kinds = "", []
        await self._admission(program)
        start = live.expect_start(step)
        prompt = len(place.tokens)
        live.emit(StepReady(program.id, lineage, step, state, engine, prompt, params.max_tokens))
        try:
            priority = await start
            request = GenerateRequest(
                step, lineage, tuple(place.tokens), params, priority,
                program.tenant.encode("utf-8", "surrogatepass"), grammar,
                noise=str(choice or sample),
            )  # fmt: skip
            usage: Usage | None = None
            context = prompt
            async with aclosing(generate_until(live.engine, request, enough)) as deltas:
                async for delta in deltas:
                    usage = delta.usage or usage
                    context += len(delta.tokens)
                    live.heard(program.id, step, context, delta)
                    yield delta
            if usage is not None:
                self._finished(place, lineage, step, state, usage)
        finally:
            if choice:
                live.emit(LineageEnded(program.id, lineage))

    async def _admission(self, program: HttpProgram) -> None:
        """Raises `ProgramReleased` for a program that was released meanwhile."""
        while (admitted := program.admitted) is not None and not admitted.done():
            await asyncio.wait({admitted}, timeout=_HELD_SECONDS)
            if not admitted.done():
                self._make_room()
        self._alive(program)

    @staticmethod
    def _alive(program: HttpProgram) -> None:
        if program.ended:
            raise ProgramReleased(program.label)

    def _finished(self, place: Place, lineage: str, step: str, state: str, usage: Usage) -> None:
        if (account := place.program.account) is not None:
            account.usage.output_tokens += usage.output_tokens
            account.usage.tokens += usage.prompt_tokens - usage.cached_tokens + usage.output_tokens
        context = usage.prompt_tokens + usage.output_tokens
        computed = usage.prompt_tokens - usage.cached_tokens
        self.live.emit(
            StepFinished(
                place.program.id, lineage, step, state, self.live.engine.info.id, context,
                tuple(place.lineage.kinds) or ("client",), computed,
                *spans(usage),
                final=not place.program.named and place.program.running == 1,
            )
        )  # fmt: skip


__all__ = ["Place", "Programs"]
