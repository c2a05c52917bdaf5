"""Batch: which tokens the next engine step computes.

One rule for everything (after vLLM V1): a sequence has `computed` tokens and needs all of its
tokens computed; a step hands out a budget of tokens. Chunked prefill, prefix hits, resumption
after a tool and decoding are the same arithmetic. Pure: no clock, no tensor, no thread.
"""

from collections.abc import Iterable

from drawloom.engine.core.batch_members import Members, Output, rank
from drawloom.engine.core.faults import as_exception
from drawloom.engine.core.step_plan import Chunk, Sampled, StepPlan, chunk_of
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.sequence import UNSAMPLED, FinishReason, Sequence, Status


class _StepInFlight(Exception):
    """Signal that nothing can be planned before the step in flight completes."""


class Batch(Members):
    """Plan engine steps for the sequences of an engine, and book their results.

    Args:
        max_tokens: most tokens of one step.
        max_sequences: most sequences that run at a time.
        max_context: most tokens of one sequence.
        eos_ids: token ids that end a sequence.
        contiguous: reserve neighbouring blocks for each sequence (see `BlockPool`).

    Attributes:
        preempted: the sequences preempted by the last `schedule`.
    """

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
        capacity = cache.total_blocks * cache.block_size
        slides = cache.window and capacity >= cache.window + max_tokens + 2 * cache.block_size
        super().__init__(
            cache, max_context if slides else min(max_context, capacity), max_sequences
        )
        self.preempted: list[Sequence] = []
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._eos = frozenset(eos_ids)
        self._contiguous = contiguous

    # --- planning -------------------------------------------------------------------------

    def schedule(self) -> StepPlan | None:
        """Plan the next step; return None if there is nothing to compute now."""
        chunks: list[Chunk] = []
        copies: list[tuple[int, int, int]] = []
        self.preempted = []
        if self._suspects:  # a step failed: find the culprit by running each alone
            suspect = next(s for s in self._by_id.values() if s.suspect)
            try:
                self._run_alone(suspect, chunks, copies)
            except Exception as error:
                self.fail(suspect, error)
        else:
            try:
                budget, pressed = self._continue_running(chunks)
            except _StepInFlight:
                return None
            if self._waiting and budget and not pressed:
                self._start_waiting(budget, chunks, copies)
        # a copy must not wait for a parked sequence: its source could be evicted by then
        return StepPlan(chunks, copies) if chunks or copies else None

    @property
    def needs_sync(self) -> bool:
        """Return whether the next step cannot be planned before this one completes.

        A running sequence needs its last token (see `Sequence.needs_sync`), or the sequence that
        makes steps fail is being searched for.
        """
        return self._unsynced > 0 or self._suspects > 0

    def mark_launched(self, plan: StepPlan) -> None:
        """Note that a step is in flight, so that the next one can be planned before it completes.

        The sources of its copies may be reused: later steps follow it on the device.
        """
        self._release_sources(plan)
        for chunk in plan.chunks:
            seq = chunk.seq
            seq.in_flight += 1
            seq.computed = chunk.end
            if chunk.sample and seq.params.max_tokens:
                seq.tokens.append(UNSAMPLED)
                seq.unsampled += 1

    def _must_wait(self, seq: Sequence) -> bool:
        """Return whether a sequence must wait for a load or for the step in flight."""
        if seq.loading:
            return True
        if not seq.in_flight:
            return False
        length = len(seq.tokens)
        last = length - seq.prompt_length >= seq.params.max_tokens or length >= self.max_context
        return length == seq.computed or seq.needs_sync or (seq.unsampled > 0 and last)

    def _continue_running(self, chunks: list[Chunk]) -> tuple[int, bool]:
        """Plan the chunks of running sequences.

        Every decoding sequence gets its token before any prompt gets a share of the budget,
        whatever the priorities: a long prompt would stall running answers otherwise
        (Sarathi-Serve, Agrawal et al. 2024).

        Returns:
            The budget that is left, and whether any sequence was preempted.
        """
        if not self._sorted:
            self._running.sort(key=rank)
            self._sorted = True
        budget, pressed, size = self._max_tokens, False, self.cache.block_size
        prompts: list[Sequence] = []
        at = 0
        while at < len(self._running) and budget:
            seq = self._running[at]
            at += 1
            if (seq.loading or seq.in_flight) and self._must_wait(seq):
                continue
            if len(seq.tokens) - seq.computed > 1:
                prompts.append(seq)
                continue
            if seq.computed >= len(seq.blocks) * size:
                pressed = not self._make_room(seq, seq.computed + 1) or pressed
                if seq.status is not Status.RUNNING:
                    at -= 1
                    continue
            chunks.append(chunk_of(seq, 1))
            budget -= 1
        for seq in prompts:
            count = min(len(seq.tokens) - seq.computed, budget)
            if not count:
                break
            if seq.status is Status.RUNNING and seq.computed + count > len(seq.blocks) * size:
                pressed = not self._make_room(seq, seq.computed + count) or pressed
                chunks[:] = [c for c in chunks if c.seq.status is Status.RUNNING]
            if seq.status is Status.RUNNING:
                chunks.append(chunk_of(seq, count))
                budget -= count
        return budget, pressed

    def _make_room(self, seq: Sequence, tokens: int) -> bool:
        """Get blocks for a sequence, preempting those of lower rank, or itself, if need be.

        Never preempts while a step is in flight: the victim would lose the token being sampled
        and could be preempted at the same point for ever (livelock).

        Returns:
            False if a sequence was preempted.

        Raises:
            _StepInFlight: if a sequence would have to be preempted while a step is in flight.
        """
        enough = True
        while not self._append_blocks(seq, tokens):
            if seq.status is Status.FINISHED:
                return False
            if any(other.in_flight for other in self._running):
                raise _StepInFlight
            enough = False
            victim = self._running[-1]
            self._preempt(victim)
            self.preempted.append(victim)
            if victim is seq:
                break
        return enough

    def _append_blocks(self, seq: Sequence, tokens: int) -> bool:
        try:
            return self.cache.append(seq, tokens)
        except Exception as error:
            self.fail(seq, error)
            return False

    def _start_waiting(
        self, budget: int, chunks: list[Chunk], copies: list[tuple[int, int, int]]
    ) -> None:
        for seq in sorted(self._waiting, key=rank):
            if not budget or len(self._running) >= self._max_sequences:
                return
            try:
                if self._waits_for_prefix(seq):
                    continue
                if not self._admit(seq, copies):
                    return
                if not seq.loading:
                    count = min(seq.uncomputed, budget)
                    chunks.append(chunk_of(seq, count))
                    budget -= count
            except Exception as error:
                self.fail(seq, error)

    def _waits_for_prefix(self, seq: Sequence) -> bool:
        """Return whether a running sequence computes this one's prefix, which it will share.

        The running sequence takes over the better priority of the two.
        """
        producer = self.cache.producer(seq)
        if producer is None:
            return False
        other = self._by_id[producer]
        if seq.priority < other.priority:
            other.priority, self._sorted = seq.priority, False
        return True

    def _admit(self, seq: Sequence, copies: list[tuple[int, int, int]]) -> bool:
        """Start a sequence if there is room for all of its prompt, so that no two starve."""
        made = self.cache.allocate(seq, self._extent(seq), self._contiguous, self._max_tokens)
        if made is None:
            return False
        copies += made
        self._waiting.remove(seq)
        self._running.append(seq)
        self._sorted = False
        self._unsynced += seq.needs_sync
        seq.status, seq.slot = Status.RUNNING, self._slots.pop()
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
        count = min(seq.uncomputed, self._max_tokens)
        if not seq.loading and self.cache.append(seq, seq.computed + count):
            chunks.append(chunk_of(seq, count))

    # --- booking --------------------------------------------------------------------------

    def complete(self, plan: StepPlan, sampled: dict[str, Sampled]) -> list[Output]:
        """Book the results of a step. Sequences that ended meanwhile are skipped.

        Args:
            sampled: results by sequence id.
        """
        counters = self.counters
        counters.steps += 1
        self._release_sources(plan)
        outputs = []
        for chunk in plan.chunks:
            seq = chunk.seq
            counters.computed_tokens += len(chunk.tokens)
            if seq.status is not Status.RUNNING or chunk.epoch != seq.epoch:
                continue
            try:
                output = self._book(chunk, sampled.get(seq.id))
            except BaseException as error:
                self.fail(seq, as_exception(error))
            else:
                if output is not None:
                    outputs.append(output)
        return outputs + self.take_failures()

    def _book(self, chunk: Chunk, result: Sampled | None) -> Output | None:
        seq = chunk.seq
        if seq.in_flight:
            seq.in_flight -= 1
        if result is not None and result.error is not None:
            raise result.error
        self.cache.publish(seq, chunk.end)
        if seq.suspect:
            seq.suspect = False
            self._suspects -= 1
        if chunk.score >= 0 and result is not None:
            seq.scores += result.scores
        if not chunk.sample:
            return None
        if seq.params.max_tokens:
            assert result is not None, f"nothing was sampled for {seq.id}"
            return self._add_token(seq, result, chunk.end)
        self._end(seq)
        return Output(seq, None, FinishReason.LENGTH)

    def fail_step(self, plan: StepPlan, error: Exception) -> list[Output]:
        """Book a step that raised.

        Its sequences are queued again and run one by one: one that fails alone ends with the
        error, the others only lose time.
        """
        self._release_sources(plan)
        for chunk in plan.chunks:
            seq = chunk.seq
            if seq.status is not Status.RUNNING or chunk.epoch != seq.epoch:
                continue
            if len(plan.chunks) == 1:
                self.fail(seq, error)
            else:
                self._suspects += not seq.suspect
                seq.suspect = True
                self.requeue(seq, min(seq.published * self.cache.block_size, chunk.start))
        targets = {target for _, target, _ in plan.copies}
        for seq in [s for s in self._running if s.loading and targets.intersection(s.blocks)]:
            self.requeue(seq)  # parked, so without a chunk: its copy was not made either
        return self.take_failures()

    def _release_sources(self, plan: StepPlan) -> None:
        """Unpin the sources of a step's copies, once."""
        if not plan.released:
            plan.released = True
            for source, _, _ in plan.copies:
                self.cache.finish_copy(source)

    def _add_token(self, seq: Sequence, sampled: Sampled, at: int) -> Output:
        token = sampled.token
        if seq.unsampled:
            seq.tokens[at] = token
            seq.unsampled -= 1
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
        length = len(seq.tokens) - seq.unsampled
        if length - seq.prompt_length >= params.max_tokens or length >= self.max_context:
            return FinishReason.LENGTH
        return None

    def ends(self, seq: Sequence, token: int) -> bool:
        """Return whether a token ends a sequence."""
        params = seq.params
        return token in params.stop_ids or (token in self._eos and not params.ignore_eos)


__all__ = ["Batch", "Output"]
