"""Comparison of eviction alone: the accesses of a `fcfs-lru` run, replayed with their order frozen.

Whatever retains KV sees the same calls start and end in the same order at the same times, with no
host memory behind the device; the results differ only in which tokens are prefilled again.
`farthest` is the reference: it is told every future access and evicts, token by token, the one that
is used last (Bélády 1966). All tokens cost alike here, and a prefix is never used later than its
continuation, so that chains stay closed and no replacement needs fewer; it does not bound another
order of calls, or running fewer of them at a time.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.sequence import Sequence as EngineSequence
from drawloom.errors import EngineError
from drawloom.runtime.scheduler import Policy, Scheduler
from drawloom.runtime.scheduler.actions import LeaseKV, ReleaseKV
from drawloom.runtime.scheduler.events import (
    EngineUp,
    Event,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
)
from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.policy import Grant
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState
from drawloom.runtime.sim.presets import Machine
from drawloom.runtime.sim.sim_calls import BLOCK, Work, sequence
from drawloom.runtime.sim.workload import Job


@dataclass(frozen=True, slots=True)
class Access:
    """Describe one call of the log, in units of several tokens.

    Attributes:
        step: its name.
        program: whose call it is.
        agent: the program's.
        units: numbers of its prompt and then of its output.
        prompt: how many of them are the prompt.
        ready: when it was submitted.
        start: when it got its memory.
        first: when its prompt was computed.
        end: when it gave its memory back.
        calls: tools that it asked for.
        last: it is its program's last call.
    """

    step: str
    program: str
    agent: str
    units: tuple[int, ...]
    prompt: int
    ready: float
    start: float
    first: float
    end: float
    calls: tuple[str, ...]
    last: bool


def accesses(log: Sequence[tuple[Work, Job, int]], unit: int) -> list[Access]:
    """Return the accesses of a recorded simulation."""
    found = []
    for work, job, at in log:
        last = at + 1 == len(job.calls)
        calls = () if last else (job.calls[at].tool,)
        prompt = work.prompt // unit
        units = tuple(work.seq.tokens)
        found.append(
            Access(
                step=work.step,
                program=job.id,
                agent=job.agent,
                units=units,
                prompt=prompt,
                ready=work.ready,
                start=work.begun,
                first=work.first,
                end=work.ends,
                calls=calls,
                last=last,
            )
        )
    return found


class FrozenDrawloom(Drawloom):
    """Retain KV as `drawloom` does, under a given order of calls: every program runs."""

    def admit(self, state: SchedulerState, now: float) -> Iterator[Grant]:
        while (program := state.wait_queue.first) is not None:
            yield self.grant(state, program)

    def pause(self, state: SchedulerState, now: float) -> Iterator[ProgramState]:
        return iter(())


_ENGINE = "sim"
_END, _FIRST, _START = range(3)


def timeline(log: Sequence[Access]) -> list[tuple[float, int, int]]:
    """Return ``(time, kind, index)`` in order; calls that end make room for those that start."""
    marks = [(a.end, _END, n) for n, a in enumerate(log)]
    marks += [(a.first, _FIRST, n) for n, a in enumerate(log)]
    marks += [(a.start, _START, n) for n, a in enumerate(log)]
    return sorted(marks)


def farthest(log: Sequence[Access], capacity: int) -> int:
    """Return the units prefilled again if the unit that is used last is evicted first.

    Args:
        log: accesses.
        capacity: units that fit.

    Raises:
        EngineError: calls that run together do not fit.
    """
    marks = [mark for mark in timeline(log) if mark[1] != _FIRST]
    uses: dict[int, list[int]] = {}
    for at, (_, what, index) in enumerate(marks):
        if what == _START:
            for unit in log[index].units:
                uses.setdefault(unit, []).append(at)
    held: dict[int, int] = {}
    kept: dict[int, int] = {}
    order: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    again = 0
    for at, (_, what, index) in enumerate(marks):
        access = log[index]
        if what == _END:
            for depth, unit in enumerate(access.units):
                held[unit] -= 1
                if held[unit]:
                    continue
                del held[unit]
                later = uses[unit]
                found = bisect_right(later, at)
                if found < len(later):  # what is never used again is given up at once
                    kept[unit] = later[found]
                    heapq.heappush(order, (-later[found], -depth, unit))
            continue
        for place, unit in enumerate(access.units):
            resident = unit in held or kept.pop(unit, None) is not None
            again += not resident and place < access.prompt and unit in seen
            held[unit] = held.get(unit, 0) + 1
        seen.update(access.units)
        while len(held) + len(kept) > capacity:
            if not order:
                raise EngineError(f"{len(held)} units are in use at once; {capacity} fit")
            use, _, unit = heapq.heappop(order)
            if kept.get(unit) == -use:
                del kept[unit]
    return again


def replay(log: Sequence[Access], machine: Machine, policy: Policy) -> int:
    """Return the units prefilled again by the engine's cache, under a policy's retention.

    Raises:
        EngineError: calls that run together do not fit.
    """
    core = Scheduler(policy)
    core.state.cost = machine.cost
    core.handle(EngineUp(_ENGINE, machine.kv_tokens), 0.0)
    cache = KVCache(machine.kv_tokens // (machine.unit * BLOCK), BLOCK, 1.0)
    running: dict[int, EngineSequence] = {}
    seen, known, again = set[int](), set[str](), 0

    def tell(event: Event, now: float) -> None:
        cache.expire(now)
        for action in core.handle(event, now):
            if isinstance(action, LeaseKV):
                cache.lease(action.conversation, now, action.ttl, action.value)
            elif isinstance(action, ReleaseKV):
                cache.release(action.conversation, evict=action.evict)

    for now, what, index in timeline(log):
        a = log[index]
        if what == _FIRST:
            cache.publish(running[index], a.prompt)
            continue
        if what == _START:
            if a.program not in known:
                known.add(a.program)
                tell(ProgramSubmitted(a.program, a.agent), now)
            prompt = machine.unit * a.prompt
            tell(
                StepReady(
                    program=a.program,
                    conversation=a.program,
                    step=a.step,
                    state="llm",
                    engine=_ENGINE,
                    prompt=prompt,
                    output=0,
                ),
                now,
            )
            seq = sequence(a.step, a.program, list(a.units))
            started = cache.allocate(seq, cache.blocks_for(len(a.units)), False)
            if started is None:
                raise EngineError(f"call {a.step} does not fit beside those that run with it")
            for source, _, _ in started:
                cache.finish_copy(source)
            cache.take_copies()
            again += max(0, sum(u in seen for u in a.units[: a.prompt]) - min(seq.hit, a.prompt))
            seen.update(a.units)
            running[index] = seq
            continue
        seq = running.pop(index)
        cache.publish(seq, len(a.units))
        cache.free(seq)
        context = machine.unit * len(a.units)
        tell(
            StepFinished(
                program=a.program,
                conversation=a.program,
                step=a.step,
                state="llm",
                engine=_ENGINE,
                context=context,
                calls=a.calls,
                queued=a.start - a.ready,
                service=a.end - a.start,
                final=a.last,
            ),
            now,
        )
        if a.last:
            tell(ProgramEnded(a.program), now)
    return again


__all__ = ["Access", "FrozenDrawloom", "accesses", "farthest", "replay", "timeline"]
