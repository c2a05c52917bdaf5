"""Sequences of a batch: the queue, those that run, and how each leaves."""

import logging
from dataclasses import asdict, dataclass

from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.sequence import FinishReason, Sequence, Status
from drawloom.engine.stats import BatchCounters, BatchStats
from drawloom.errors import ContextTooLong, DrawloomError, EngineError

log = logging.getLogger("drawloom.engine")


@dataclass(slots=True)
class Output:
    """Report what a step did for one sequence.

    Attributes:
        token: the sampled token; None if only KV was computed, or the sequence failed.
        finish: why the sequence ended; None if it did not.
    """

    seq: Sequence
    token: int | None
    finish: FinishReason | None
    error: DrawloomError | None = None


class Members:
    """Keep the waiting and the running sequences of an engine, over one KV cache.

    A fault over one sequence ends that sequence alone, and leaves the others in order.

    Attributes:
        failures: the sequences that failed since `take_failures`.
    """

    def __init__(self, cache: KVCache, max_context: int, max_sequences: int) -> None:
        self.cache, self.max_context = cache, max_context
        self.counters = BatchCounters()
        self.failures: list[Output] = []
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._sorted = True
        self._suspects = 0
        self._unsynced = 0
        self._slots = list(range(max_sequences - 1, -1, -1))
        self._by_id: dict[str, Sequence] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def waiting(self) -> int:
        """Return the number of sequences in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Return the number of sequences with blocks, parked ones included."""
        return len(self._running)

    @property
    def sequences(self) -> list[Sequence]:
        """Return all sequences."""
        return list(self._by_id.values())

    @property
    def parked(self) -> int:
        """Return the number of running sequences whose KV is being loaded from host memory."""
        return sum(1 for seq in self._running if seq.loading)

    def stats(self) -> BatchStats:
        """Return the present gauges and counters."""
        return BatchStats(
            **asdict(self.counters),
            running=self.running,
            waiting=self.waiting,
            parked=self.parked,
        )

    def add(self, seq: Sequence) -> None:
        """Queue a sequence.

        Raises:
            ContextTooLong: if it could never run.
        """
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
        """Remove a sequence and free its blocks at once; return it, or None if it is unknown."""
        seq = self._by_id.get(seq_id)
        if seq is not None:
            self._end(seq)
        return seq

    # --- leaving --------------------------------------------------------------------------

    def requeue(self, seq: Sequence, trusted: int | None = None) -> None:
        """Put a running sequence back into the queue after a fault.

        Args:
            trusted: tokens whose KV is certain and stays cached; by default its full blocks.
        """
        if seq.status is not Status.RUNNING:
            return
        full = seq.published * self.cache.block_size
        self._requeue(seq, full if trusted is None else trusted)

    def _requeue(self, seq: Sequence, trusted: int | None) -> None:
        """Free a running sequence's blocks and queue it; without `trusted`, all KV is certain."""
        self._free_blocks(seq, trusted)
        self._stop_running(seq)
        self._waiting.append(seq)
        seq.status = Status.WAITING

    def _free_blocks(self, seq: Sequence, trusted: int | None) -> None:
        try:
            seq.rollback_in_flight()
            self.cache.free(seq, trusted)
        except Exception:  # costs no more than computing its tokens again
            log.exception("the KV of request %s could not be kept", seq.id)
            self.cache.free_unrecorded(seq)

    def fail(self, seq: Sequence, error: Exception) -> None:
        """End a sequence with an error; the results of its last step are discarded."""
        if seq.id not in self._by_id:
            return
        if not isinstance(error, DrawloomError):
            log.error("request %s failed", seq.id, exc_info=error)
            error = EngineError(f"the engine failed on this request: {error!r}")
        self.failures.append(Output(seq, None, FinishReason.ERROR, error))
        self._end(seq, seq.published * self.cache.block_size)

    def take_failures(self) -> list[Output]:
        """Return the sequences that failed since the last call."""
        failures, self.failures = self.failures, []
        return failures

    def preempt_all(self) -> None:
        """Preempt all sequences, because the weights or the device's memory will change."""
        for seq in list(self._running):
            self._preempt(seq)

    def _preempt(self, seq: Sequence) -> None:
        self.counters.preemptions += 1
        seq.preemptions += 1
        self._requeue(seq, None)

    def _stop_running(self, seq: Sequence) -> None:
        self._running.remove(seq)
        self._unsynced -= seq.needs_sync
        self._slots.append(seq.slot)
        seq.slot = -1

    def _end(self, seq: Sequence, trusted: int | None = None) -> None:
        if seq.status is Status.RUNNING or seq.blocks:
            self._free_blocks(seq, trusted)
        if seq.status is Status.RUNNING:
            self._stop_running(seq)
        else:
            self._waiting.remove(seq)
        self._suspects -= seq.suspect
        seq.suspect, seq.status = False, Status.FINISHED
        del self._by_id[seq.id]


def rank(seq: Sequence) -> tuple[float, int]:
    """Return the sort key of a sequence: lower ones are served first."""
    return seq.priority, seq.arrival


__all__ = ["Members", "Output", "rank"]
