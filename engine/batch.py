"""The batch: which tokens the next step computes.

One rule for everything (after vLLM V1): a sequence has `computed` tokens and wants all of its
tokens computed; a step hands out a budget of tokens. Prefill in chunks, prefix hits, resuming
after a tool and decoding are the same arithmetic. Pure: no clock, no tensor, no thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from drawloom.engine.cache import KVCache
from drawloom.engine.plan import Chunk, Sampled, StepPlan
from drawloom.engine.sequence import PENDING, FinishReason, Sequence, Status
from drawloom.errors import ContextTooLong, DrawloomError


@dataclass(slots=True)
class Output:
    """What a step did for one sequence. `token` is None when it only had KV to compute."""

    seq: Sequence
    token: int | None
    finish: FinishReason | None
    error: DrawloomError | None = None


@dataclass(slots=True)
class BatchCounters:
    steps: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


class _TooEarly(Exception):
    """Nothing can be scheduled before what is under way is known."""


class Batch:
    """The sequences of an engine, waiting and running, over one KV cache. `gave_way` are those
    that did, in the step that was scheduled last."""

    def __init__(
        self,
        cache: KVCache,
        *,
        max_tokens: int = 512,
        max_sequences: int = 64,
        max_context: int = 1 << 30,
        eos_ids: Iterable[int] = (),
        contiguous: bool = False,
    ) -> None:
        self.cache = cache
        self.counters = BatchCounters()
        self.gave_way: list[Sequence] = []
        held = cache.pool.count * cache.block_size
        slides = cache.window and held >= cache.window + max_tokens + 2 * cache.block_size
        self.max_context = max_context if slides else min(max_context, held)
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._eos = frozenset(eos_ids)
        self._contiguous = contiguous
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._sorted = True
        self._suspects = 0
        self._close = 0
        self._seats = list(range(max_sequences - 1, -1, -1))
        self._by_id: dict[str, Sequence] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def sequences(self) -> list[Sequence]:
        return list(self._by_id.values())

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. Raises `ContextTooLong` when it could never run."""
        room = self.max_context - len(seq.tokens)
        if room < (seq.params.max_tokens > 0):
            raise ContextTooLong(
                f"the prompt has {len(seq.tokens)} tokens; this engine holds {self.max_context} "
                "(the model's context or the KV cache, whichever is smaller): shorten the prompt "
                "or raise kv_tokens",
                tokens=len(seq.tokens),
                limit=self.max_context,
            )
        if not seq.tokens:
            raise ContextTooLong("the prompt is empty: send at least one token")
        seq.arrival = self._arrivals = self._arrivals + 1
        self._by_id[seq.id] = seq
        self._waiting.append(seq)

    def cancel(self, seq_id: str) -> Sequence | None:
        """Take a sequence out and free what it held, at once."""
        seq = self._by_id.get(seq_id)
        if seq is not None:
            self._end(seq)
        return seq

    # --- one step -------------------------------------------------------------------------

    @property
    def parked(self) -> int:
        """Running sequences that wait for their KV to come back from host memory."""
        return sum(1 for seq in self._running if seq.loading)

    def schedule(self) -> StepPlan | None:
        """The next step, or None when there is nothing to compute now."""
        chunks: list[Chunk] = []
        copies: list[tuple[int, int, int]] = []
        self.gave_way = []
        if self._suspects:  # a step failed: find the culprit by running each alone
            suspect = next(s for s in self._by_id.values() if s.suspect)
            self._run_alone(suspect, chunks, copies)
        else:
            try:
                budget, pressed = self._continue_running(chunks)
            except _TooEarly:
                return None
            if self._waiting and budget and not pressed:
                self._start_waiting(budget, chunks, copies)
        # a copy may not wait for a sequence that is parked: its source could be gone by then
        return StepPlan(chunks, copies) if chunks or copies else None

    @property
    def close(self) -> bool:
        """Whether a step must be known before the next can be planned: of a sequence that runs (see
        `Sequence.close`), or because it is looked for which one makes steps fail."""
        return self._close > 0 or self._suspects > 0

    def launched(self, plan: StepPlan) -> None:
        """A step is under way, and the next one may be scheduled before it is complete: whatever
        takes a source of its copies comes after it on the device."""
        self._release(plan)
        for chunk in plan.chunks:
            seq = chunk.seq
            seq.flying += 1
            seq.computed = chunk.end
            if chunk.sample and seq.params.max_tokens:
                seq.tokens.append(PENDING)
                seq.pending += 1

    def _waits(self, seq: Sequence) -> bool:
        """Whether nothing can be computed for a sequence before what is under way is known."""
        if seq.loading:
            return True
        if not seq.flying:
            return False
        length = len(seq.tokens)
        last = length - seq.prompt_length >= seq.params.max_tokens or length >= self.max_context
        return length == seq.computed or seq.close or (seq.pending > 0 and last)

    def _continue_running(self, chunks: list[Chunk]) -> tuple[int, bool]:
        """Chunks of what runs; the budget left, and whether anything had to give way."""
        if not self._sorted:
            self._running.sort(key=_rank)
            self._sorted = True
        budget, pressed, size = self._max_tokens, False, self.cache.block_size
        at = 0
        while at < len(self._running) and budget:
            seq = self._running[at]
            at += 1
            if (seq.loading or seq.flying) and self._waits(seq):
                continue
            count = len(seq.tokens) - seq.computed
            if count > budget:
                count = budget
            if seq.computed + count > len(seq.blocks) * size:
                given = self._make_room(seq, seq.computed + count)
                pressed = pressed or not given
                if seq.status is not Status.RUNNING:
                    break  # it was the last and had to give way itself
            chunks.append(_chunk(seq, count))
            budget -= count
        return budget, pressed

    def _make_room(self, seq: Sequence, tokens: int) -> bool:
        """Blocks for `seq`, taken from those behind it if need be; False if some gave way. Nobody
        gives way before all that is under way is known: what it just says would be lost, and it
        could come back to the same place for ever."""
        given = True
        while not self.cache.grow(seq, tokens):
            if any(other.flying for other in self._running):
                raise _TooEarly
            given = False
            victim = self._running[-1]
            self._preempt(victim)
            self.gave_way.append(victim)
            if victim is seq:
                break
        return given

    def _start_waiting(
        self, budget: int, chunks: list[Chunk], copies: list[tuple[int, int, int]]
    ) -> None:
        for seq in sorted(self._waiting, key=_rank):
            if not budget or len(self._running) >= self._max_sequences:
                return
            producer = self.cache.producer(seq)
            if producer is not None:  # its beginning is being computed: share it, and hurry it
                other = self._by_id[producer]
                if seq.priority < other.priority:
                    other.priority, self._sorted = seq.priority, False
                continue
            if not self._admit(seq, copies):
                return
            if not seq.loading:
                count = min(seq.behind, budget)
                chunks.append(_chunk(seq, count))
                budget -= count

    def _admit(self, seq: Sequence, copies: list[tuple[int, int, int]]) -> bool:
        """Start a sequence if all of its prompt has room, so that no two starve each other."""
        made = self.cache.start(seq, self._extent(seq), self._contiguous, self._max_tokens)
        if made is None:
            return False
        copies += made
        self._waiting.remove(seq)
        self._running.append(seq)
        self._sorted = False
        self._close += seq.close
        seq.status, seq.seat = Status.RUNNING, self._seats.pop()
        return True

    def _extent(self, seq: Sequence) -> int:
        total = min(seq.prompt_length + seq.params.max_tokens, self.max_context)
        return 0 if self.cache.window else self.cache.blocks_for(total)

    def _run_alone(
        self, seq: Sequence, chunks: list[Chunk], copies: list[tuple[int, int, int]]
    ) -> None:
        for other in list(self._running):
            if other is not seq:
                self._preempt(other)
        if seq.status is Status.WAITING and not self._admit(seq, copies):
            return
        count = min(seq.behind, self._max_tokens)
        if not seq.loading and self.cache.grow(seq, seq.computed + count):
            chunks.append(_chunk(seq, count))

    def preempt_all(self) -> None:
        """Put everything that runs back in the queue (the weights or the device's memory go)."""
        for seq in list(self._running):
            self._preempt(seq)

    def complete(self, plan: StepPlan, sampled: dict[str, Sampled]) -> list[Output]:
        """Book what the runner did. Sequences cancelled meanwhile are passed over."""
        counters, cache = self.counters, self.cache
        counters.steps += 1
        self._release(plan)
        outputs = []
        for chunk in plan.chunks:
            seq = chunk.seq
            counters.computed_tokens += len(chunk.tokens)
            if seq.status is not Status.RUNNING or chunk.epoch != seq.epoch:
                continue
            if seq.flying:
                seq.flying -= 1
            cache.computed(seq, chunk.start + len(chunk.tokens))
            if seq.suspect:
                seq.suspect = False
                self._suspects -= 1
            result = sampled.get(seq.id)
            if chunk.score >= 0 and result is not None:
                seq.scores += result.scores
            if not chunk.sample:
                continue
            if seq.params.max_tokens:
                assert result is not None, f"nothing was sampled for {seq.id}"
                outputs.append(self._append(seq, result, chunk.end))
            else:
                self._end(seq)
                outputs.append(Output(seq, None, FinishReason.LENGTH))
        return outputs

    def failed(self, plan: StepPlan, error: Exception) -> list[Output]:
        """A step raised. Its sequences are taken back and run one by one; one that fails alone
        ends with the error, the others never notice."""
        self._release(plan)
        outputs = []
        for chunk in plan.chunks:
            seq = chunk.seq
            if seq.status is not Status.RUNNING or chunk.epoch != seq.epoch:
                continue
            seq.land()
            trusted = seq.published * self.cache.block_size
            self.cache.discard(seq, min(trusted, chunk.start))
            if len(plan.chunks) == 1:
                self._end(seq)
                reason = error if isinstance(error, DrawloomError) else None
                outputs.append(Output(seq, None, FinishReason.ERROR, reason))
            else:
                self._suspects += not seq.suspect
                seq.suspect = True
                self._requeue(seq)
        targets = {target for _, target, _ in plan.copies}
        for seq in [s for s in self._running if s.loading and targets.intersection(s.blocks)]:
            seq.land()  # parked, so without a chunk: its copy was not made either
            self.cache.discard(seq, seq.published * self.cache.block_size)
            self._requeue(seq)
        return outputs

    def _release(self, plan: StepPlan) -> None:
        """The copies of a step were made, or never will be: their sources may be reclaimed."""
        if not plan.released:
            plan.released = True
            for source, _, _ in plan.copies:
                self.cache.copied(source)

    def _append(self, seq: Sequence, sampled: Sampled, at: int) -> Output:
        token = sampled.token
        if seq.pending:
            seq.tokens[at] = token
            seq.pending -= 1
        else:
            seq.tokens.append(token)
        if seq.params.logprobs:
            seq.logprobs.append(sampled.logprob)
            seq.tops.append(sampled.top)
        if seq.guide is not None:
            seq.guide.accept(token)
        self.counters.generated_tokens += 1
        finish = self._finish_reason(seq, token)
        if finish is not None:
            self._end(seq)
        return Output(seq, token, finish)

    def _finish_reason(self, seq: Sequence, token: int) -> FinishReason | None:
        params = seq.params
        if self.ends(seq, token):
            return FinishReason.STOP
        if seq.guide is not None and seq.guide.complete:
            return FinishReason.STOP
        length = len(seq.tokens) - seq.pending
        if length - seq.prompt_length >= params.max_tokens or length >= self.max_context:
            return FinishReason.LENGTH
        return None

    def ends(self, seq: Sequence, token: int) -> bool:
        """Whether a token is one that ends a sequence."""
        params = seq.params
        return token in params.stop_ids or (token in self._eos and not params.ignore_eos)

    def _preempt(self, seq: Sequence) -> None:
        self.counters.preemptions += 1
        seq.preemptions += 1
        seq.land()
        self.cache.finish(seq)
        self._requeue(seq)

    def _requeue(self, seq: Sequence) -> None:
        self._leave(seq)
        self._waiting.append(seq)
        seq.status = Status.WAITING

    def _leave(self, seq: Sequence) -> None:
        self._running.remove(seq)
        self._close -= seq.close
        self._seats.append(seq.seat)
        seq.seat = -1

    def _end(self, seq: Sequence) -> None:
        if seq.status is Status.RUNNING:
            seq.land()
            self.cache.finish(seq)
            self._leave(seq)
        else:
            self._waiting.remove(seq)
        self._suspects -= seq.suspect
        seq.suspect, seq.status = False, Status.FINISHED
        del self._by_id[seq.id]


def _rank(seq: Sequence) -> tuple[float, int]:
    return seq.priority, seq.arrival


def _chunk(seq: Sequence, count: int) -> Chunk:
    start, length = seq.computed, len(seq.tokens)
    end = start + count
    if count == 1 and end == length and seq.params.score_from < 0:
        return Chunk(seq, [seq.tokens[-1]], start, seq.blocks, True, -1, seq.epoch)
    score, since = -1, seq.params.score_from
    if since >= 0:
        first = max(since, 1) - 1 + len(seq.scores)
        if first < end and first + 1 < seq.prompt_length + seq.said:
            score = first - start
    tokens = seq.tokens[start:end]
    return Chunk(seq, tokens, start, seq.blocks, end == length, score, seq.epoch)


__all__ = ["Batch", "BatchCounters", "Output"]
