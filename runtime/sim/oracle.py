"""References that know the future: bounds, not policies that can be run.

`Clairvoyant` bounds the gain of a better order: it runs the program with the least work left first,
with every program's true work and true largest context, under the same memory, engine and
admission. It does not bound the gain of a better engine, or of preemption inside a call, and as
non-preemptive packing it is no proof of an optimum.
"""

import heapq
import random
import statistics
from collections.abc import Iterator, Sequence

import numpy as np

from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.events import StepReady
from drawloom.runtime.scheduler.policy import Grant, Keep, Policy, Retention
from drawloom.runtime.scheduler.program_state import ProgramState, Rank
from drawloom.runtime.scheduler.state import SchedulerState
from drawloom.runtime.sim.presets import Machine
from drawloom.runtime.sim.workload import Job

_FULL, _LEASE = 0.95, 600.0


class Clairvoyant(Policy):
    """Run the program first that truly has the least work left."""

    name = "clairvoyant"
    spill = True
    evict_at_end = True

    def __init__(self, jobs: Sequence[Job], cost: CostModel) -> None:
        self._left = {job.id: work_left(job, cost) for job in jobs}
        self._jobs = {job.id: job for job in jobs}

    def _work(self, program: ProgramState) -> float:
        left = self._left[program.id]
        return left[min(program.steps, len(left) - 1)]

    def agent_rank(self, state: SchedulerState, program: ProgramState) -> Rank:
        return (self._work(program),)

    def rank(self, state: SchedulerState, program: ProgramState) -> Rank:
        return (self._work(program),)

    def admit(self, state: SchedulerState, now: float) -> Iterator[Grant]:
        while (program := state.wait_queue.first) is not None:
            if not self.would_admit(state, program):
                return
            yield self.grant(state, program)

    def would_admit(self, state: SchedulerState, program: ProgramState) -> bool:
        need = self.reserve(state, program)
        return not state.active or state.totals.reserved_tokens + need <= _FULL * state.capacity

    def reserve(self, state: SchedulerState, program: ProgramState) -> int:
        return self._jobs[program.id].peak

    def step_priority(
        self, state: SchedulerState, program: ProgramState, step: StepReady, now: float
    ) -> float:
        return self._work(program)

    def retain(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        return Keep(_LEASE, conversation.context)


class Gittins:
    """Compute the inverse of the Gittins index of a distribution of work (Gittins 1979).

    Args:
        works: the seconds of work of programs, at least one.
    """

    def __init__(self, works: Sequence[float]) -> None:
        self._sorted = np.sort(np.array(works))
        self._spent = np.cumsum(self._sorted)
        self._until = self._spent + np.arange(len(works) - 1, -1, -1) * self._sorted

    def cost(self, attained: float) -> float:
        """Return the seconds for each chance of the end of a program with `attained` seconds.

        The least first is the best order that knows no more than the distribution.
        """
        # When the t-th shortest of N ends, all together have had G[t] = s[0] + .. + s[t] +
        # (N - 1 - t) s[t]. Of those that are longer than what it has had, `left` remain.
        first = int(np.searchsorted(self._sorted, attained, side="right"))
        left = len(self._sorted) - first
        if not left:
            return max(attained, 1e-3)
        had = (float(self._spent[first - 1]) if first else 0.0) + left * attained
        each = (self._until[first:] - had) / np.arange(1, left + 1)
        return max(float(each.min()), 1e-9)


def knowable(jobs: Sequence[Job], cost: CostModel, count: int = 300, seed: int = 0) -> float:
    """Return the share of clairvoyance's gain in mean completion time that others can have.

    `count` programs are drawn from `jobs`, all there at once, one after the other on one server.
    With each agent's distribution of work and each program's attained service known, no order is
    better than the Gittins index (Gittins 1979), here with free preemption after each call. The
    result is its share of the way from a random order to shortest work first: a bound for orders
    that know neither a program's future nor its graph. Memory, batching and tools are left out.
    """
    rng = random.Random(seed)
    works: dict[str, list[float]] = {}
    for job in jobs:
        works.setdefault(job.agent, []).append(work_left(job, cost)[0])
    indices = {agent: Gittins(several) for agent, several in works.items()}
    drawn = [(indices[j.agent], work_left(j, cost)) for j in rng.choices(jobs, k=count)]
    whole = [left[0] for _, left in drawn]
    first = [index.cost(0.0) for index, _ in drawn]
    queue = [(index, number, 0) for number, index in enumerate(first)]
    heapq.heapify(queue)
    now = total = 0.0
    while queue:
        _, number, at = heapq.heappop(queue)
        gittins, left = drawn[number]
        rest = left[at + 1] if at + 1 < len(left) else 0.0
        now += left[at] - rest
        if rest:
            index = gittins.cost(left[0] - rest)
            heapq.heappush(queue, (index, number, at + 1))
        else:
            total += now
    shortest = _mean_completion(sorted(whole))
    anyhow = statistics.fmean(whole) * (count + 1) / 2
    return (anyhow - total / count) / max(1e-9, anyhow - shortest)


def _mean_completion(works: Sequence[float]) -> float:
    return sum(work * (len(works) - at) for at, work in enumerate(works)) / len(works)


def fastest(jobs: Sequence[Job], machine: Machine) -> float:
    """Return the tokens a second that no schedule exceeds.

    All of `jobs` are there at once and memory is always full: every prompt is computed once (shared
    prefixes once for all programs), every token is decoded over its context, and a step decodes no
    more sequences than their private tokens have room for. Tools, arrivals and the end, when few
    are left, are not counted.
    """
    cost, seen, output, seconds, context = machine.cost, set[str](), 0, 0.0, 0.0
    for job in jobs:
        shared = job.shared
        for at, call in enumerate(job.calls):
            base = job.base(at)
            cached = min(call.reuse, job.calls[base].context) if base >= 0 else 0
            if base < 0 and job.prefix in seen:
                cached = shared
            new, mean = max(0, call.prompt - cached), call.prompt + call.output / 2
            seconds += cost.prefill * new + cost.prefill_cached * new * (cached + new / 2)
            seconds += call.output * (cost.decode_sequence + cost.decode_token * mean)
            context += call.output * max(0.0, mean - shared)
            output += call.output
        seen.add(job.prefix)
    steps = max(context / machine.kv_tokens, output / machine.max_sequences)
    return output / (seconds + cost.step * steps)


def work_left(job: Job, cost: CostModel) -> list[float]:
    """Return the engine seconds that an isolated program still needs before each of its calls."""
    left, total = [], 0.0
    for at in range(len(job.calls) - 1, -1, -1):
        call, base = job.calls[at], job.base(at)
        cached = min(call.reuse, job.calls[base].context if base >= 0 else 0)
        new = call.prompt - cached
        total += cost.prefill * new + cost.prefill_cached * new * (cached + new / 2)
        total += call.output * cost.decode(1, call.prompt + call.output // 2)
        left.append(total)
    return left[::-1]


__all__ = ["Clairvoyant", "Gittins", "fastest", "knowable", "work_left"]
