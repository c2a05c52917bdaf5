"""Simulated engine: the real KV cache, and computing time that flows between events.

The cache is the engine's (`engine/kvcache/kv_cache.py`), fed with one number for every `unit`
tokens, in blocks of 16 numbers. Decoding is not stepped: while nothing changes, every running
sequence gains tokens at the rate of the cost model, and the moment at which one fills its last
block is computed. It takes another then, as the engine's batch scheduler does; if there is none,
the sequence that is last by priority and arrival is preempted, and computed again from what is
still in the cache. Prompts are computed one after the other, by priority, beside the decodes.
"""

import heapq
import math
from collections.abc import Iterator

from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.runtime.scheduler.lazy_heap import LazyHeap
from drawloom.runtime.sim.presets import Machine
from drawloom.runtime.sim.sim_calls import BLOCK, Counters, Work

_EPSILON = 1e-9


class SimEngine:
    """Run calls in virtual time: `submit` them, `advance` to a time, take the `finished` ones.

    Attributes:
        machine: its costs and sizes.
        host: there is host memory behind it.
        counters: tokens and seconds.
        finished: calls that ended since the caller took them out.
        preempted: calls that were preempted since.
        spoke: calls that decoded into a new block since, or again after a preemption.
        now: seconds.
        cache: the engine's KV cache.
    """

    def __init__(self, machine: Machine, host: bool, spill: bool) -> None:
        self.machine, self.host = machine, host
        self.counters = Counters()
        self.finished: list[Work] = []
        self.preempted: list[Work] = []
        self.spoke: list[Work] = []
        self.now = 0.0
        size = machine.unit * BLOCK
        host_blocks = machine.host_tokens // size if host else 0
        self.cache = KVCache(
            machine.kv_tokens // size,
            BLOCK,
            1.0,
            host_blocks=host_blocks,
            save_leased=False,
        )
        self.cache.spill = spill
        self._waiting: list[tuple[float, int, Work]] = []
        self._prefills: list[tuple[float, int, Work]] = []
        self._decoding: list[tuple[float, int, Work]] = []
        self._growing = LazyHeap[tuple[float, int, int, Work]](self._grows)
        self._parked: list[Work] = []
        self._copies: list[tuple[float, int, bool, int]] = []
        self._copier = [0.0, 0.0]
        self._orders = 0
        self._iterations = 0.0
        self._context = 0.0
        self._blocked = -1

    # --- from outside ---------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Add a call."""
        self._orders += 1
        work.order = self._orders
        if self.machine.reserve:
            work.seq.tokens += work.answer
        heapq.heappush(self._waiting, (work.priority, work.order, work))
        self._blocked = -1

    @property
    def decoding(self) -> list[tuple[str, int]]:
        """Return the calls that decode, with the present tokens of their contexts."""
        return [(work.step, self.context(work)) for _, _, work in self._decoding]

    def context(self, work: Work) -> int:
        """Return the present context tokens of a call that decodes."""
        return work.prompt + work.output - int(work.ends - self._iterations)

    @property
    def running(self) -> int:
        """Return the number of calls that run."""
        return len(self._prefills) + len(self._decoding) + len(self._parked)

    @property
    def waiting(self) -> int:
        """Return the number of calls that wait."""
        return len(self._waiting)

    def next_event(self) -> float | None:
        """Return when something changes by itself; None if nothing does."""
        times = []
        if self._copies:
            times.append(self._copies[0][0])
        if self._prefills or self._decoding:
            times.append(self.now + self._span())
        return min(times) if times else None

    def advance(self, now: float) -> None:
        """Advance to a time, which must not lie beyond `next_event`; then start what can start."""
        if now > self.now:
            self._flow(now - self.now)
            self.now = now
        self._arrive()
        self._complete()
        self._grow()
        self._start()

    # --- time -----------------------------------------------------------------------------

    def _step_seconds(self) -> float:
        """Return the seconds of a step that only decodes."""
        cost = self.machine.cost
        if not self._decoding:
            return cost.step
        return cost.decode(len(self._decoding), int(self._context))

    def _prefill_seconds(self, work: Work) -> tuple[float, float]:
        """Return the seconds that the rest of a prompt takes, and the steps that it spans.

        All of a prompt spans at least one step.
        """
        cost = self.machine.cost
        new, done = work.left, work.target - work.left
        isolated = cost.prefill * new + cost.prefill_cached * new * (done + new / 2)
        steps = max(new / self.machine.batch_tokens, new / work.whole)
        return max(_EPSILON, isolated + steps * self._step_seconds()), steps

    def _span(self) -> float:
        """Return the seconds until a prompt is computed, or a sequence is over or needs a block."""
        needed = self._decoding[0][0] - self._iterations if self._decoding else 1e18
        if (growing := self._growing.top) is not None:
            needed = min(needed, growing[0] - self._iterations)
        if not self._prefills:
            return max(0.0, needed * self._step_seconds())
        work = self._prefills[0][2]
        seconds, steps = self._prefill_seconds(work)
        if needed < steps:
            seconds = min(seconds, self._seconds_for(work, needed * work.left / steps, steps))
        return max(0.0, seconds)

    def _seconds_for(self, work: Work, tokens: float, steps: float) -> float:
        """Return the seconds in which `tokens` more tokens of a prompt are computed.

        The first of them are quicker than the last, as in `_compute`.

        Args:
            work: the call.
            tokens: of its prompt.
            steps: that the rest of its prompt spans.
        """
        cost, done = self.machine.cost, work.target - work.left
        isolated = cost.prefill * tokens + cost.prefill_cached * tokens * (done + tokens / 2)
        return isolated + tokens / work.left * steps * self._step_seconds()

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
            passed = seconds / self._step_seconds()
        self._iterations += passed
        self._context += passed * len(self._decoding)

    def _compute(self, work: Work, seconds: float) -> float:
        """Compute a prompt for some seconds, and return the steps that pass.

        Later tokens attend to more, so that the time of n more tokens grows with n squared.
        """
        whole, steps = self._prefill_seconds(work)
        if seconds >= whole * (1 - 1e-12):
            work.left = 0.0
            return steps
        cost, pace = self.machine.cost, steps / work.left
        done = work.target - work.left
        each = cost.prefill + cost.prefill_cached * done + pace * self._step_seconds()
        more = 2 * seconds / (each + math.sqrt(each * each + 2 * cost.prefill_cached * seconds))
        work.left -= more
        return more * pace

    def _complete(self) -> None:
        while self._prefills and self._prefills[0][2].left < 1e-6:
            _, _, work = heapq.heappop(self._prefills)
            work.left, work.first = 0.0, work.first or self.now
            work.ends = self._iterations + work.prompt + work.output - work.target
            self.cache.publish(work.seq, work.target // self.machine.unit)
            heapq.heappush(self._decoding, (work.ends, work.order, work))
            self._context += work.target
            self._watch(work)
            if work.preemptions:
                self.spoke.append(work)
        while self._decoding and self._decoding[0][0] <= self._iterations + 1e-6:
            _, _, work = heapq.heappop(self._decoding)
            self._context -= work.prompt + work.output
            self._extend(work, len(work.answer))
            self.cache.free(work.seq)
            self.counters.output += work.output
            self.finished.append(work)
            self._blocked = -1
        if not self._decoding:
            self._context = 0.0

    def _extend(self, work: Work, units: int) -> None:
        """Give KV to the first `units` numbers of a call's output."""
        seq, prompt = work.seq, work.prompt // self.machine.unit
        seq.tokens += work.answer[len(seq.tokens) - prompt : units]
        self.cache.publish(seq, prompt + units)

    # --- blocks ---------------------------------------------------------------------------

    def _watch(self, work: Work) -> None:
        """Note when a call that decodes will have filled its blocks, if it will."""
        room = len(work.seq.blocks) * BLOCK * self.machine.unit - work.prompt
        if room < work.output:
            full = work.ends - work.output + room
            self._growing.push((full, work.order, work.preemptions, work))

    def _grows(self, entry: tuple[float, int, int, Work]) -> bool:
        _, _, preemptions, work = entry
        return work.preemptions == preemptions

    def _grow(self) -> None:
        """Give another block to the calls that have filled theirs, in order of priority."""
        due = []
        while (first := self._growing.top) is not None and first[0] <= self._iterations + 1e-6:
            self._growing.pop()
            due.append(first)
        for entry in sorted(due, key=lambda entry: _rank(entry[3])):
            work = entry[3]
            if not self._grows(entry):
                continue  # it was preempted for one before it
            held = len(work.seq.blocks)
            self._extend(work, held * BLOCK - work.prompt // self.machine.unit)
            while self._grows(entry) and not self.cache.append(work.seq, held * BLOCK + 1):
                self._preempt(max(self._started(), key=_rank))
            if self._grows(entry):
                self.spoke.append(work)
                self._watch(work)

    def _started(self) -> Iterator[Work]:
        yield from self._parked
        for _, _, work in self._prefills:
            yield work
        for _, _, work in self._decoding:
            yield work

    def _preempt(self, work: Work) -> None:
        """Preempt a call: it gives its blocks up, and waits where its priority puts it.

        What it has computed stays in the cache until the blocks are needed.
        """
        unit, seq = self.machine.unit, work.seq
        if work in self._parked:
            self._parked.remove(work)
        elif work.left > 0:
            self._prefills = _without(self._prefills, work)
            self.cache.publish(seq, max(seq.confirmed, round(work.target - work.left) // unit))
        else:
            self._decoding = _without(self._decoding, work)
            left = work.ends - self._iterations
            self._context -= work.prompt + work.output - left
            said = work.output - math.ceil(left - 1e-6)
            work.target = work.prompt + said
            self._extend(work, said // unit)
            seq.tokens = seq.tokens[: work.prompt // unit]
            seq.tokens += work.answer[: self._units(min(work.output, said + 1))]
        left_tokens = round(work.left)
        self.counters.computed -= left_tokens
        # counted in advance by `_account`: known tokens that this prefill did not get to
        unreached = max(0, min(work.known, work.target) - (work.target - left_tokens))
        work.repeated -= unreached
        self.counters.repeated -= unreached
        work.known = max(work.known, work.target - left_tokens)
        self.cache.free(seq, seq.computed)
        seq.preemptions += 1
        work.preemptions += 1
        self.counters.preempted += 1
        self.preempted.append(work)
        heapq.heappush(self._waiting, (work.priority, work.order, work))
        self._blocked = -1

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
            started = self.cache.allocate(seq, extent, False)
            if started is None:
                self._blocked = work.order
                return
            for source, _, _ in started:
                self.cache.finish_copy(source)
            heapq.heappop(self._waiting)
            self._account(work)
            self.transfer()
            if seq.loading:
                self._parked.append(work)
            else:
                heapq.heappush(self._prefills, (work.priority, work.order, work))

    def _account(self, work: Work) -> None:
        """Count a call that has started, or has started again."""
        counters, unit, hit = self.counters, self.machine.unit, work.seq.hit
        if not work.preemptions:
            work.begun, work.target = self.now, work.prompt
            work.cached = min(hit * unit, work.prompt - 1)
            counters.prompt += work.prompt
            counters.hit += work.cached
            counters.hit_host += work.seq.hit_host * unit
        cached = min(hit * unit, work.target - 1)
        again = max(0, min(work.known, work.target) - cached)
        work.repeated += again
        counters.repeated += again
        work.left = work.whole = float(work.target - cached)
        counters.computed += work.target - cached

    # --- copies ---------------------------------------------------------------------------

    def transfer(self) -> None:
        """Carry out the copies that the cache decided on, one after the other in each direction."""
        copies = self.cache.take_copies()
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
                self.cache.finish_load(block)
            else:
                self.cache.finish_save(block)
            self._blocked = -1
        ready = [work for work in self._parked if not work.seq.loading]
        for work in ready:
            self._parked.remove(work)
            heapq.heappush(self._prefills, (work.priority, work.order, work))


def _rank(work: Work) -> tuple[float, int]:
    return work.priority, work.order


def _without(entries: list[tuple[float, int, Work]], work: Work) -> list[tuple[float, int, Work]]:
    kept = [entry for entry in entries if entry[2] is not work]
    heapq.heapify(kept)
    return kept


__all__ = ["SimEngine"]
