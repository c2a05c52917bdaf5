"""The sequences of a batch: which wait, which run, and how each leaves."""

import logging
from dataclasses import asdict, dataclass

from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.sequence import FinishReason, Sequence, Status
from drawloom.engine.stats import BatchCounters, BatchStats
from drawloom.errors import ContextTooLong, DrawloomError, EngineError

log = logging.getLogger("drawloom.engine")


@dataclass(slots=True)
class Output:
    """What a step did for one sequence. `token` is None when it only had KV to compute."""

    seq: Sequence
    token: int | None
    finish: FinishReason | None
    error: DrawloomError | None = None


def fault(error: BaseException) -> Exception:
    """Return what fails a request: the panic of a library in Rust is no `Exception`.

    Raises:
        KeyboardInterrupt, SystemExit, GeneratorExit: what is to end the thread goes on.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
    return error if isinstance(error, Exception) else EngineError(f"a library failed: {error!r}")


class Members:
    """The sequences of an engine, waiting and running, over one KV cache.

    Whatever fails over a sequence ends that sequence alone, and leaves the rest in order.

    Attributes:
        broken: the sequences that failed since `take_broken`.
    """

    def __init__(self, cache: KVCache, max_context: int, max_sequences: int) -> None:
        self.cache, self.max_context = cache, max_context
        self.counters = BatchCounters()
        self.broken: list[Output] = []
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
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def sequences(self) -> list[Sequence]:
        return list(self._by_id.values())

    @property
    def parked(self) -> int:
        """Running sequences that wait for their KV to come back from host memory."""
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

    # --- leaving --------------------------------------------------------------------------

    def take_back(self, seq: Sequence, trusted: int | None = None) -> None:
        """Put a running sequence back in the queue, to be computed again from what is certain:
        `trusted` tokens, or its full blocks."""
        if seq.status is not Status.RUNNING:
            return
        full = seq.published * self.cache.block_size
        self._leave_blocks(seq, full if trusted is None else trusted)

    def _leave_blocks(self, seq: Sequence, trusted: int | None) -> None:
        """Put a running sequence back in the queue; without `trusted`, all computed holds."""
        self._give_up_blocks(seq, trusted)
        self._requeue(seq)

    def _give_up_blocks(self, seq: Sequence, trusted: int | None) -> None:
        try:
            seq.rollback_in_flight()
            self.cache.free(seq, seq.computed if trusted is None else trusted)
        except Exception:  # it only costs computing again
            log.exception("what request %s computed could not be kept", seq.id)
            self.cache.free_unrecorded(seq)

    def fail(self, seq: Sequence, error: Exception) -> None:
        """End a sequence with an error. Nothing of its last step is kept."""
        if seq.id not in self._by_id:
            return
        if not isinstance(error, DrawloomError):
            log.error("request %s failed", seq.id, exc_info=error)
            error = EngineError(f"the engine failed on this request: {error!r}")
        self.broken.append(Output(seq, None, FinishReason.ERROR, error))
        self._end(seq, seq.published * self.cache.block_size)

    def take_broken(self) -> list[Output]:
        """The sequences that failed since the last call."""
        broken, self.broken = self.broken, []
        return broken

    def preempt_all(self) -> None:
        """Put everything that runs back in the queue (the weights or the device's memory go)."""
        for seq in list(self._running):
            self._preempt(seq)

    def _preempt(self, seq: Sequence) -> None:
        self.counters.preemptions += 1
        seq.preemptions += 1
        self._leave_blocks(seq, None)

    def _requeue(self, seq: Sequence) -> None:
        self._leave(seq)
        self._waiting.append(seq)
        seq.status = Status.WAITING

    def _leave(self, seq: Sequence) -> None:
        self._running.remove(seq)
        self._unsynced -= seq.needs_sync
        self._slots.append(seq.slot)
        seq.slot = -1

    def _end(self, seq: Sequence, trusted: int | None = None) -> None:
        if seq.status is Status.RUNNING or seq.blocks:
            self._give_up_blocks(seq, trusted)
        if seq.status is Status.RUNNING:
            self._leave(seq)
        else:
            self._waiting.remove(seq)
        self._suspects -= seq.suspect
        seq.suspect, seq.status = False, Status.FINISHED
        del self._by_id[seq.id]


def rank(seq: Sequence) -> tuple[float, int]:
    """The order of sequences, the first to be served first."""
    return seq.priority, seq.arrival


__all__ = ["Members", "Output", "fault", "rank"]
