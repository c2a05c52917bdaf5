"""Player of a workload's programs against a dispatcher: random tokens, pauses instead of tools."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing

from drawloom.engine.api.engine import RequestUsage
from drawloom.engine.sequence import SamplingParams
from drawloom.environments import Env
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.dispatch.env_claim import Owner
from drawloom.runtime.dispatch.step_driver import LlmStepSpec, run_llm_step
from drawloom.runtime.scheduler.events import (
    ConversationEnded,
    Forked,
    ProgramEnded,
    ProgramSubmitted,
    ToolNamed,
)
from drawloom.runtime.sim.sim_program import Ended, conversation_of
from drawloom.runtime.sim.workload import Job

VOCABULARY = 4_096


class Player:
    """Plays programs against a dispatcher, and notes when each step was ready, begun and done."""

    def __init__(self, dispatcher: Dispatcher, jobs: Sequence[Job]) -> None:
        self.dispatcher, self.jobs = dispatcher, jobs
        self.rng = random.Random(1)
        self.ended: list[Ended] = []
        self.fresh = self.recomputed = self.output = 0
        self._prefixes: dict[str, list[int]] = {}

    async def run(self) -> None:
        self.began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for job in self.jobs:
                group.create_task(self._program(job))

    def _now(self) -> float:
        return time.monotonic() - self.began

    async def _program(self, job: Job) -> None:
        await asyncio.sleep(max(0.0, job.arrival - self._now()))
        result = Ended(job, self._now())
        env = self.env(job)
        if env is not None:
            self.dispatcher.environments.declare(env)
        keys = () if env is None else (env.key,)
        self.dispatcher.emit(ProgramSubmitted(job.id, job.agent, job.tenant, envs=keys))
        done = [asyncio.Event() for _ in job.calls]
        contexts: dict[int, list[int]] = {}
        left = dict.fromkeys((call.chat for call in job.calls), 0)
        for call in job.calls:
            left[call.chat] += 1
        async with asyncio.TaskGroup() as group:
            for at in range(len(job.calls)):
                group.create_task(self._call(result, at, done, contexts, left))
        result.ended = self._now()
        self.ended.append(result)
        self.dispatcher.emit(ProgramEnded(job.id))

    async def _call(
        self,
        result: Ended,
        at: int,
        done: list[asyncio.Event],
        contexts: dict[int, list[int]],
        left: dict[int, int],
    ) -> None:
        job, call = result.job, result.job.calls[at]
        for before in job.after(at):
            await done[before].wait()
        await asyncio.sleep(max((job.calls[n].gap for n in job.after(at)), default=0.0))
        base, conversation = job.base(at), conversation_of(job.id, call.chat)
        if base >= 0 and job.calls[base].chat != call.chat:
            parent, engine = (
                conversation_of(job.id, job.calls[base].chat),
                self.dispatcher.engine.info.id,
            )
            self.dispatcher.emit(Forked(job.id, parent, conversation, engine))
            self.dispatcher.fork(parent, conversation)
        begin = contexts[base][: call.reuse] if base >= 0 else self._prefix(job)
        new = [self.rng.randrange(3, VOCABULARY) for _ in range(call.prompt - len(begin))]
        tokens, ready = begin + new, self._now()
        said, usage = await self._generate(job, at, conversation, tokens)
        contexts[at] = tokens + said
        left[call.chat] -= 1
        wait = usage.first - self.began - ready
        known = len(begin) if base >= 0 else 0
        self.recomputed += max(0, known - usage.cached_tokens)
        self.fresh += len(tokens) - known + len(said)
        self.output += len(said)
        if at:
            result.waits.append(wait)
        else:
            result.admission = wait
        if not left[call.chat] and call.chat:
            self.dispatcher.emit(ConversationEnded(job.id, conversation))
        if call.busy and (env := self.env(job)) is not None:
            self.dispatcher.emit(ToolNamed(job.id, call.tool, env.key))
            (await self.dispatcher.environments.claim(env, Owner(job.id))).touched = True
        done[at].set()

    def env(self, job: Job) -> Env | None:
        """Return where the tools of a program run; None where nothing has environments."""
        return Env(job.env) if self.dispatcher.pool is not None and job.env else None

    def _prefix(self, job: Job) -> list[int]:
        known = self._prefixes.setdefault(job.prefix, [])
        known += [self.rng.randrange(3, VOCABULARY) for _ in range(job.shared - len(known))]
        return known[: job.shared]

    async def _generate(
        self, job: Job, at: int, conversation: str, tokens: list[int]
    ) -> tuple[list[int], RequestUsage]:
        call, before, last = job.calls[at], job.base(at), at + 1 == len(job.calls)
        spec = LlmStepSpec(
            program=job.id,
            conversation=conversation,
            step=f"{job.id}#{at}",
            state=f"{call.site}/{job.calls[before].tool if before >= 0 else ''}",
            prompt=tuple(tokens),
            params=SamplingParams(max_tokens=call.output, ignore_eos=True),
        )
        output: list[int] = []
        async with run_llm_step(self.dispatcher, spec) as step:
            async with aclosing(step.stream()) as deltas:
                async for delta in deltas:
                    output += delta.tokens
            step.tool_kinds, step.final = () if last else (call.tool,), last
        assert step.usage is not None
        return output, step.usage


__all__ = ["VOCABULARY", "Player"]
