"""Programs that are only seen through their requests.

Every request belongs to a program and is scheduled as one. A client that names its program keeps
it until it releases it or is silent for `ttl` seconds; a client that names none is recognised by
what it sends: a prompt that begins with all that a program was told and said is its next turn.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import islice
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
from drawloom.ids import new_id
from drawloom.prompts import Prompt
from drawloom.runtime.budget import Account
from drawloom.runtime.live import Live
from drawloom.runtime.llmcall import spans
from drawloom.runtime.server.early import generate_until
from drawloom.runtime.server.errors import ProgramReleased

_NAMELESS = 256
_OUTPUT = 256
_LINEAGES = 8
_HELD_SECONDS = 0.25
_SWEEP_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Lineage:
    """One conversation: all its text and tokens so far."""

    name: str
    text: str = ""
    ids: list[int] = field(default_factory=list)
    tool: str = ""
    kinds: list[str] = field(default_factory=list)
    busy: bool = True


@dataclass(slots=True, eq=False)
class HttpProgram:
    """`admitted` is None while the scheduler does not know it: a nameless program is one to it
    only while it runs, or nobody else would get the room that it might never want again. With an
    `account` it is a program of the runtime's own that also asks from inside its environment: it
    was admitted elsewhere, and ends there."""

    id: str
    named: bool
    tenant: str
    account: Account | None = None
    admitted: asyncio.Future[None] | None = None
    lineages: dict[str, Lineage] = field(default_factory=dict)
    running: int = 0
    seen: float = 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request belongs: its lineage is busy until it is left."""

    program: HttpProgram
    lineage: Lineage
    tokens: list[int]


class Programs:
    """The programs behind a server. `ttl` is how long a silent one is kept, in seconds."""

    def __init__(self, live: Live, ttl: float = 300.0, nameless_ttl: float = 30.0) -> None:
        self.live, self.ttl, self.nameless_ttl = live, ttl, nameless_ttl
        self._programs: dict[str, HttpProgram] = {}
        self._nameless: OrderedDict[str, HttpProgram] = OrderedDict()
        self._steps = self._lineages = 0
        self._sweeper = asyncio.create_task(self._sweep())

    def __len__(self) -> int:
        return len(self._programs)

    async def close(self) -> None:
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        for key in list(self._programs):
            self.end(key)
        await self.live.settle()

    def describe(self) -> list[dict[str, Any]]:
        """Describe every program for people: identity, state, size and idle time in seconds."""
        now = time.monotonic()
        return [
            {
                "program_id": program.id,
                "tenant": program.tenant,
                "named": program.named,
                "status": "running" if program.running else "idle",
                "requests": program.running,
                "conversations": len(program.lineages),
                "tokens": sum(len(lineage.ids) for lineage in program.lineages.values()),
                "idle_s": 0.0 if program.running else round(now - program.seen, 3),
            }
            for program in self._programs.values()
        ]

    # --- whose request it is --------------------------------------------------------------

    def inside(self, id: str, tenant: str, account: Account) -> str:
        """A program of the runtime asks from inside its environment; the name to `place` it by."""
        key = f"\0{id}"
        if key not in self._programs:
            self._programs[key] = HttpProgram(id, True, tenant, account, seen=time.monotonic())
        return key

    def place(
        self, name: str | None, tenant: str, priority: int, prompt: str | Prompt, output: int = 0
    ) -> Place:
        """The lineage that a prompt continues, or a new one; its tokens, the known ones as they
        were sampled. A lineage that is busy is continued by nobody else: what begins as it did
        before is a fork of it. `output` is how many tokens may come, if that is known."""
        prompt = Prompt.of(prompt)
        text = prompt.text
        guest = self._programs.get(name or "")
        inside = guest is not None and guest.account is not None
        key = name if name is None or inside else self.key(name, tenant)
        program = self._programs.get(key) if key else self._by_text(tenant, text)
        if program is None:
            program = HttpProgram(key or new_id("http"), key is not None, tenant)
            self._programs[program.id] = program
            if not program.named:
                self._nameless[program.id] = program
                self._bound()
        if not program.named:
            self._nameless.move_to_end(program.id)
        lineage, parent = _continued(program, text, busy=False), None
        if lineage is None:
            self._lineages += 1  # never one name twice: an ended program may still be running
            lineage = Lineage(f"{program.id}/{self._lineages}")
            if (parent := _continued(program, text, busy=True)) is not None:
                lineage.text, lineage.ids = parent.text, parent.ids
            program.lineages[lineage.name] = lineage
        lineage.busy = True
        program.running += 1
        rest = self.live.engine.tokenizer.encode(prompt.after(len(lineage.text)))
        place = Place(program, lineage, [*lineage.ids, *rest])
        if program.admitted is None and program.account is None:
            program.admitted = self.live.expect_admission(program.id)
            expect = len(place.tokens) + (output or _OUTPUT)
            kind = "http-program" if program.named else "http-request"
            self.live.emit(
                ProgramSubmitted(program.id, kind, tenant, priority, expect_tokens=expect)
            )
        if parent is not None:
            engine = self.live.engine.info.id
            self.live.emit(Forked(program.id, parent.name, lineage.name, engine, len(parent.ids)))
        return place

    @staticmethod
    def key(name: str, tenant: str) -> str:
        """Two tenants may use the same names, and never meet."""
        return name if tenant == "default" else f"{tenant}:{name}"

    def _by_text(self, tenant: str, text: str) -> HttpProgram | None:
        for program in reversed(self._nameless.values()):
            if program.tenant == tenant:
                for lineage in program.lineages.values():
                    if text.startswith(lineage.text) and lineage.text and not lineage.busy:
                        return program
        return None

    def _bound(self) -> None:
        """So many nameless programs are remembered and no more."""
        over = len(self._nameless) - _NAMELESS
        if over > 0:
            idle = (p for p in self._nameless.values() if not p.running)
            for program in list(islice(idle, over)):
                self.end(program.id)

    def leave(self, place: Place, text: str | None, ids: list[int]) -> None:
        """A request is over. `text` is all the lineage now holds; None drops the lineage."""
        program, lineage = place.program, place.lineage
        lineage.busy = False
        program.running -= 1
        program.seen = time.monotonic()
        if text is None:
            program.lineages.pop(lineage.name, None)
            self.live.emit(LineageEnded(program.id, lineage.name))
        else:
            lineage.text, lineage.ids = text, ids
            program.lineages[lineage.name] = program.lineages.pop(lineage.name, lineage)
            self._forget_some(program)
        if not program.named and not program.running:
            if not program.lineages:
                self.end(program.id)
            else:
                self._rest(program)

    def _forget_some(self, program: HttpProgram) -> None:
        """So many conversations of a program are remembered: those that were used last."""
        idle = [name for name, lineage in program.lineages.items() if not lineage.busy]
        for name in idle[:-_LINEAGES]:
            del program.lineages[name]
            self.live.emit(LineageEnded(program.id, name))

    def _rest(self, program: HttpProgram) -> None:
        """The scheduler forgets a program that has nothing to do; its next turn submits it again.
        Its KV stays as long as there is room."""
        if program.admitted is not None:
            program.admitted = None
            self.live.emit(ProgramEnded(program.id, keep=True))

    def _make_room(self) -> None:
        """Somebody is held: the program that has been silent for longest rests."""
        idle = [p for p in self._programs.values() if not p.running and p.admitted is not None]
        if idle:
            self._rest(min(idle, key=lambda program: program.seen))

    def end(self, id: str) -> bool:
        """A program is over: all it held is free. False if there is none."""
        program = self._programs.pop(id, None)
        if program is None:
            return False
        self._nameless.pop(id, None)
        if program.admitted is not None:
            program.admitted.cancel()
            self.live.emit(ProgramEnded(id))
        return True

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = time.monotonic()
            for program in list(self._programs.values()):
                ttl = self.ttl if program.named else self.nameless_ttl
                if not program.running and now - program.seen > ttl:
                    self.end(f"\0{program.id}" if program.account else program.id)

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
                program.tenant.encode(), grammar, noise=str(choice or sample),
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
        """Raises `ProgramReleased` for one that was released meanwhile."""
        while (admitted := program.admitted) is not None and not admitted.done():
            await asyncio.wait({admitted}, timeout=_HELD_SECONDS)
            if not admitted.done():
                self._make_room()
        if program.account is None and self._programs.get(program.id) is not program:
            raise ProgramReleased(program.id)

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


def _continued(program: HttpProgram, text: str, busy: bool) -> Lineage | None:
    """The longest conversation of a program, of those that are busy or the others, that this text
    goes on with."""
    best = None
    for lineage in program.lineages.values():
        longer = best is None or len(lineage.text) > len(best.text)
        if lineage.busy is busy and lineage.text and longer and text.startswith(lineage.text):
            best = lineage
    return best


__all__ = ["HttpProgram", "Lineage", "Place", "Programs"]
