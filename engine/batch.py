"""The batch: which tokens the next step computes.

One rule for everything (after vLLM V1): a sequence has `computed` tokens and wants all of its
tokens computed; a step hands out a budget of tokens. Prefill in chunks, prefix hits, resuming
after a tool and decoding are the same arithmetic. Pure: no clock, no tensor, no thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from drawloom.engine.cache import KVCache
from drawloom.engine.sequence import FinishReason, SamplingParams, Sequence, Status
from drawloom.errors import ContextTooLong, DrawloomError


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence to compute: those from `start`, at the end of a context of `end`."""

    seq: str
    tokens: list[int]
    start: int
    blocks: list[int]
    sample: bool
    params: SamplingParams
    lineage: str

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """All that crosses from the batch to the model runner.

    `copies` are ``(source block, target block, tokens)``, made before anything is computed.
    """

    chunks: list[Chunk]
    copies: list[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sampled token and its log-probability under the unmodified distribution."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Output:
    """What a step did for one sequence."""

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


class Batch:
    """The sequences of an engine, waiting and running, over one KV cache."""

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
        self.max_context = min(max_context, cache.pool.count * cache.block_size)
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._eos = frozenset(eos_ids)
        self._contiguous = contiguous
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
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
        if room < 1:
            raise ContextTooLong(
                f"the prompt has {len(seq.tokens)} tokens; this engine holds {self.max_context} "
                "(the model's context or the KV cache, whichever is smaller): shorten the prompt "
                "or raise kv_tokens"
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

    def schedule(self) -> StepPlan | None:
        """The next step, or None when there is nothing to do."""
        order = sorted(self._running, key=_rank)
        suspects = [s for s in self._by_id.values() if s.suspect]
        chunks: list[Chunk] = []
        copies: list[tuple[int, int, int]] = []
        if suspects:  # a step failed: find the culprit by running each alone
            self._run_alone(suspects[0], chunks, copies)
        else:
            budget = self._continue_running(order, chunks)
            if len(chunks) == len(self._running):
                self._start_waiting(budget, chunks, copies)
        return StepPlan(chunks, copies) if chunks else None

    def _continue_running(self, order: list[Sequence], chunks: list[Chunk]) -> int:
        budget = self._max_tokens
        while order:
            seq = order.pop(0)
            count = min(seq.behind, budget)
            if not count:
                break
            while not self.cache.grow(seq, seq.computed + count):
                victim = order.pop() if order else seq
                self._preempt(victim)
                if victim is seq:
                    count = 0
                    break
            if count:
                chunks.append(_chunk(seq, count))
                budget -= count
        return budget

    def _start_waiting(
        self, budget: int, chunks: list[Chunk], copies: list[tuple[int, int, int]]
    ) -> None:
        for seq in sorted(self._waiting, key=_rank):
            if not budget or len(self._running) >= self._max_sequences:
                return
            if not self._admit(seq, copies):
                return
            count = min(seq.behind, budget)
            chunks.append(_chunk(seq, count))
            budget -= count

    def _admit(self, seq: Sequence, copies: list[tuple[int, int, int]]) -> bool:
        """Start a sequence if all of its prompt has room, so that no two starve each other."""
        made = self.cache.start(seq, self._extent(seq), self._contiguous)
        if made is None:
            return False
        copies += made
        self._waiting.remove(seq)
        self._running.append(seq)
        seq.status = Status.RUNNING
        return True

    def _extent(self, seq: Sequence) -> int:
        total = min(seq.prompt_length + seq.params.max_tokens, self.max_context)
        return self.cache.blocks_for(total)

    def _run_alone(
        self, seq: Sequence, chunks: list[Chunk], copies: list[tuple[int, int, int]]
    ) -> None:
        for other in list(self._running):
            if other is not seq:
                self._preempt(other)
        if seq.status is Status.WAITING and not self._admit(seq, copies):
            return
        if self.cache.grow(seq, len(seq.tokens)):
            chunks.append(_chunk(seq, min(seq.behind, self._max_tokens)))

    def complete(self, plan: StepPlan, sampled: dict[str, Sampled]) -> list[Output]:
        """Book what the runner did. Sequences cancelled meanwhile are passed over."""
        self.counters.steps += 1
        for source, _, _ in plan.copies:
            self.cache.copied(source)
        outputs = []
        for chunk in plan.chunks:
            self.counters.computed_tokens += len(chunk.tokens)
            seq = self._by_id.get(chunk.seq)
            if seq is None or seq.status is not Status.RUNNING:
                continue
            self.cache.computed(seq, chunk.end)
            seq.suspect = False
            if chunk.sample:
                outputs.append(self._append(seq, sampled[chunk.seq]))
        return outputs

    def failed(self, plan: StepPlan, error: Exception) -> list[Output]:
        """A step raised. Its sequences are taken back and run one by one; one that fails alone
        ends with the error, the others never notice."""
        for source, _, _ in plan.copies:
            self.cache.copied(source)
        outputs = []
        for chunk in plan.chunks:
            seq = self._by_id.get(chunk.seq)
            if seq is None or seq.status is not Status.RUNNING:
                continue
            trusted = len(seq.keys) * self.cache.block_size
            self.cache.discard(seq, min(trusted, chunk.start))
            if len(plan.chunks) == 1:
                self._end(seq)
                reason = error if isinstance(error, DrawloomError) else None
                outputs.append(Output(seq, None, FinishReason.ERROR, reason))
            else:
                seq.suspect = True
                self._requeue(seq)
        return outputs

    def _append(self, seq: Sequence, sampled: Sampled) -> Output:
        seq.tokens.append(sampled.token)
        if seq.params.logprobs:
            seq.logprobs.append(sampled.logprob)
        self.counters.generated_tokens += 1
        finish = self._finish_reason(seq, sampled.token)
        if finish is not None:
            self._end(seq)
        return Output(seq, sampled.token, finish)

    def _finish_reason(self, seq: Sequence, token: int) -> FinishReason | None:
        params = seq.params
        if token in params.stop_ids or (token in self._eos and not params.ignore_eos):
            return FinishReason.STOP
        if seq.generated >= params.max_tokens or len(seq.tokens) >= self.max_context:
            return FinishReason.LENGTH
        return None

    def _preempt(self, seq: Sequence) -> None:
        self.counters.preemptions += 1
        seq.preemptions += 1
        self.cache.finish(seq)
        self._requeue(seq)

    def _requeue(self, seq: Sequence) -> None:
        self._running.remove(seq)
        self._waiting.append(seq)
        seq.status = Status.WAITING

    def _end(self, seq: Sequence) -> None:
        if seq.status is Status.RUNNING:
            self.cache.finish(seq)
            self._running.remove(seq)
        else:
            self._waiting.remove(seq)
        seq.status = Status.FINISHED
        del self._by_id[seq.id]


def _rank(seq: Sequence) -> tuple[float, int]:
    return seq.priority, seq.arrival


def _chunk(seq: Sequence, count: int) -> Chunk:
    end = seq.computed + count
    tokens = seq.tokens[seq.computed : end]
    sample = end == len(seq.tokens)
    return Chunk(seq.id, tokens, seq.computed, list(seq.blocks), sample, seq.params, seq.lineage)


__all__ = ["Batch", "BatchCounters", "Chunk", "Output", "Sampled", "StepPlan"]
