"""An engine without tokens: the real KV cache, and time that flows between events.

The cache is the engine's own (`drawloom.engine.cache`), fed with one number for every `unit`
tokens, in blocks of 16 numbers. Decoding is not stepped: while nothing changes, every running
sequence gains tokens at the rate of the cost model. A step's output gets its blocks when the step
starts, so no step is preempted. Prompts are computed one after the other, by priority, beside the
decodes.
"""

import heapq
import math
from dataclasses import dataclass

from drawloom.engine.cache import KVCache
from drawloom.engine.records import WriteThrough
from drawloom.engine.sequence import SamplingParams, Sequence
from drawloom.runtime.sim.presets import Machine

BLOCK = 16
_EPSILON = 1e-9


@dataclass(slots=True, eq=False)
class Work:
    """One LLM call at the engine. `prompt` and `output` in tokens, times in seconds."""

    step: str
    seq: Sequence
    prompt: int
    output: int
    priority: float
    ready: float
    order: int = 0
    left: float = 0.0
    cached: int = 0
    begun: float = 0.0
    first: float = 0.0
    ends: float = 0.0


@dataclass(slots=True)
class Counters:
    """Tokens, and seconds in which anything was computed; `sequences` and `context` are what
    decoded in these and its tokens, times seconds."""

    prompt: int = 0
    hit: int = 0
    hit_host: int = 0
    computed: int = 0
    output: int = 0
    busy: float = 0.0
    sequences: float = 0.0
    context: float = 0.0


class SimEngine:
    """`submit` calls, `advance` to a time, take what `finished`."""

    def __init__(self, machine: Machine, host: bool, spill: bool) -> None:
        self.machine, self.host = machine, host
        self.counters = Counters()
        self.finished: list[Work] = []
        self.now = 0.0
        size = machine.unit * BLOCK
        host_blocks = machine.host_tokens // size if host else 0
        self.cache = KVCache(
            machine.kv_tokens // size, BLOCK, 1.0,
            host_blocks=host_blocks, write_through=WriteThrough.NEVER,
        )  # fmt: skip
        self.cache.index.spill = spill
        self._waiting: list[tuple[float, int, Work]] = []
        self._prefills: list[tuple[float, int, Work]] = []
        self._decoding: list[tuple[float, int, Work]] = []
        self._parked: list[Work] = []
        self._copies: list[tuple[float, int, bool, int]] = []
        self._copier = [0.0, 0.0]
        self._orders = 0
        self._iterations = 0.0
        self._context = 0.0
        self._blocked = -1

    # --- from outside ---------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        self._orders += 1
        work.order = self._orders
        heapq.heappush(self._waiting, (work.priority, work.order, work))
        self._blocked = -1

    @property
    def decoding(self) -> list[tuple[str, int]]:
        """The calls that decode, and the tokens of the context of each by now."""
        return [
            (work.step, work.prompt + work.output - int(ends - self._iterations))
            for ends, _, work in self._decoding
        ]

    @property
    def running(self) -> int:
        return len(self._prefills) + len(self._decoding) + len(self._parked)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def next_event(self) -> float | None:
        """When something changes by itself."""
        times = []
        if self._copies:
            times.append(self._copies[0][0])
        if self._prefills or self._decoding:
            times.append(self.now + self._span())
        return min(times) if times else None

    def advance(self, now: float) -> None:
        """Let time pass, which must not go beyond `next_event`; then start what can start."""
        if now > self.now:
            self._flow(now - self.now)
            self.now = now
        self._arrive()
        self._complete()
        self._start()

    # --- time -----------------------------------------------------------------------------

    def _beside(self) -> float:
        """Seconds of a step that only decodes."""
        cost = self.machine.cost
        if not self._decoding:
            return cost.step
        return cost.decode(len(self._decoding), int(self._context))

    def _prefill_seconds(self, work: Work) -> tuple[float, float]:
        """What is left of a prompt: its seconds, and the steps that it spans; all of it at least
        one."""
        cost = self.machine.cost
        new, done = work.left, work.prompt - work.left
        alone = cost.prefill * new + cost.prefill_cached * new * (done + new / 2)
        whole = work.prompt - work.cached
        steps = max(new / self.machine.batch_tokens, new / whole)
        return max(_EPSILON, alone + steps * self._beside()), steps

    def _span(self) -> float:
        """Seconds until the next prompt is computed or the next sequence is complete."""
        needed = self._decoding[0][0] - self._iterations if self._decoding else 1e18
        if not self._prefills:
            return max(0.0, needed * self._beside())
        work = self._prefills[0][2]
        seconds, steps = self._prefill_seconds(work)
        if needed < steps:
            seconds = min(seconds, self._seconds_for(work, needed * work.left / steps, steps))
        return max(0.0, seconds)

    def _seconds_for(self, work: Work, tokens: float, steps: float) -> float:
        """Until so many more tokens of a prompt are computed, what is left of it spanning so many
        steps: the first of them are quicker than the last, as `_compute` has it."""
        cost, done = self.machine.cost, work.prompt - work.left
        alone = cost.prefill * tokens + cost.prefill_cached * tokens * (done + tokens / 2)
        return alone + tokens / work.left * steps * self._beside()

    def _flow(self, seconds: float) -> None:
        if not self._prefills and not self._decoding:
            return
        self.counters.busy += seconds
        self.counters.sequences += seconds * len(self._decoding)
        self.counters.context += seconds * self._context
        if self._prefills:
            work = self._prefills[0][2]
            passed = self._compute(work, seconds)
        else:
            passed = seconds / self._beside()
        self._iterations += passed
        self._context += passed * len(self._decoding)

    def _compute(self, work: Work, seconds: float) -> float:
        """A prompt is computed for so long; the steps that pass. Later tokens attend to more, so
        what n more take grows with n squared."""
        whole, steps = self._prefill_seconds(work)
        if seconds >= whole * (1 - 1e-12):
            work.left = 0.0
            return steps
        cost, pace = self.machine.cost, steps / work.left
        done = work.prompt - work.left
        each = cost.prefill + cost.prefill_cached * done + pace * self._beside()
        more = 2 * seconds / (each + math.sqrt(each * each + 2 * cost.prefill_cached * seconds))
        work.left -= more
        return more * pace

    def _complete(self) -> None:
        while self._prefills and self._prefills[0][2].left < 1e-6:
            _, _, work = heapq.heappop(self._prefills)
            work.first = self.now
            work.ends = self._iterations + work.output
            self.cache.computed(work.seq, len(work.seq.tokens) - self._units(work.output))
            heapq.heappush(self._decoding, (work.ends, work.order, work))
            self._context += work.prompt
        while self._decoding and self._decoding[0][0] <= self._iterations + 1e-6:
            _, _, work = heapq.heappop(self._decoding)
            self._context -= work.prompt + work.output
            self.cache.computed(work.seq, len(work.seq.tokens))
            self.cache.finish(work.seq)
            self.counters.output += work.output
            self.finished.append(work)
            self._blocked = -1
        if not self._decoding:
            self._context = 0.0

    def _units(self, tokens: int) -> int:
        return -(-tokens // self.machine.unit)

    # --- starting -------------------------------------------------------------------------

    def _start(self) -> None:
        limit = self.machine.max_sequences
        while self._waiting and self.running < limit:
            work = self._waiting[0][2]
            if self._blocked == work.order:
                return
            seq = work.seq
            extent = self.cache.blocks_for(len(seq.tokens))
            started = self.cache.start(seq, extent, False)
            if started is None:
                self._blocked = work.order
                return
            for source, _, _ in started:
                self.cache.copied(source)
            heapq.heappop(self._waiting)
            work.begun = self.now
            work.cached = min(seq.hit * self.machine.unit, work.prompt - 1)
            work.left = work.prompt - work.cached
            self.counters.prompt += work.prompt
            self.counters.hit += work.cached
            self.counters.hit_host += seq.hit_host * self.machine.unit
            self.counters.computed += int(work.left)
            self.transfer()
            if seq.loading:
                self._parked.append(work)
            else:
                heapq.heappush(self._prefills, (work.priority, work.order, work))

    # --- copies ---------------------------------------------------------------------------

    def transfer(self) -> None:
        """Carry out what the cache decided to copy; each direction one after the other."""
        copies = self.cache.drain()
        seconds = self.machine.cost.restore(self.machine.unit * BLOCK)
        self._copier[0] = max(self._copier[0], self.now) + seconds * len(copies.spills)
        for pairs, out in ((copies.saves, 0), (copies.loads, 1)):
            for source, target in pairs:
                self._copier[out] = max(self._copier[out], self.now) + seconds
                place = target if out else source
                heapq.heappush(self._copies, (self._copier[out], self._orders, bool(out), place))
                self._orders += 1

    def _arrive(self) -> None:
        while self._copies and self._copies[0][0] <= self.now + 1e-12:
            _, _, loaded, block = heapq.heappop(self._copies)
            if loaded:
                self.cache.loaded(block)
            else:
                self.cache.saved(block)
            self._blocked = -1
        ready = [work for work in self._parked if not work.seq.loading]
        for work in ready:
            self._parked.remove(work)
            heapq.heappush(self._prefills, (work.priority, work.order, work))


def sequence(step: str, lineage: str, units: list[int], salt: bytes = b"") -> Sequence:
    return Sequence(step, lineage, units, SamplingParams(max_tokens=1), salt)


__all__ = ["BLOCK", "Counters", "SimEngine", "Work", "sequence"]
