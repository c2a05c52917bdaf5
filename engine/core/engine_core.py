"""Engine core: cache, batch and runner behind one step, synchronous and without torch."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, assert_never

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import Delta, EngineInfo, EngineStats, GenerateRequest
from drawloom.engine.core.batch_members import Output
from drawloom.engine.core.batch_scheduler import Batch
from drawloom.engine.core.faults import Faults, as_exception
from drawloom.engine.core.kv_exchange import KVExchange
from drawloom.engine.core.requests import Grammars, RequestBook
from drawloom.engine.core.step_plan import Runner, Sampled, StepPlan
from drawloom.engine.core.transfers import POLL_SECONDS, Transfers
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.kvcache.kv_export import Fingerprint
from drawloom.engine.sequence import FinishReason, Sequence
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import ConfigError, EngineError
from drawloom.leases import KVReply

_SMOOTHING = 0.1


class EngineCore:
    """Take requests and commands, run engine steps, and return deltas and answers.

    A step has two halves. `prepare` plans and launches the next step, then post-processes the last
    one (text, stop strings, deltas) while the device works. `compute` waits for the device and
    books the result. With a runner of `async_launch`, `prepare` launches the next step before the
    last one completes, so that the device never waits for the CPU.

    An exception in any part of a step ends the request over which it happened, and no other.

    Args:
        max_tokens: most tokens of one step.
        max_sequences: most sequences that run at a time.
        eos_ids: token ids that end a sequence.
        grammars: compiles grammars; None if there are none.
        fingerprint: identifies the model for exchanged KV; None if none is exchanged.
        load_weights: reads the weights of a checkpoint folder.
        digest: hashes weights, for the fingerprint.
        clock: returns the time in seconds; a simulator or a test brings its own.

    Attributes:
        copy_seconds: time to copy a block between device and host memory, measured by the runner.
        prefill_seconds: time of prefill a token, a moving average.
        model_seconds: time that the runner took; `overhead_seconds` is the rest of the steps.
    """

    def __init__(
        self,
        info: EngineInfo,
        cache: KVCache,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        max_tokens: int = 512,
        max_sequences: int = 64,
        eos_ids: tuple[int, ...] = (),
        grammars: Grammars | None = None,
        fingerprint: Fingerprint | None = None,
        load_weights: Callable[[str], Any] | None = None,
        digest: Callable[[Any], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info, self.cache, self.tokenizer = info, cache, tokenizer
        self.weights, self.asleep = "", False
        self.prefill_seconds = self.copy_seconds = 0.0
        self.model_seconds = self.overhead_seconds = 0.0
        self.batch = Batch(
            cache,
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            max_context=info.max_context,
            eos_ids=eos_ids,
            contiguous=info.device == "cpu",
        )
        vocabulary = info.vocabulary or tokenizer.size
        self.requests = RequestBook(self.batch, tokenizer, vocabulary, grammars, clock)
        self._runner, self._clock = runner, clock
        self._load_weights, self._digest = load_weights, digest
        self._faults = Faults()
        self.transfers = Transfers(cache, runner, self.batch, self._faults)
        self._exchange = KVExchange(cache, runner, self.transfers, fingerprint)
        self._launched: deque[tuple[StepPlan, Callable[[], dict[str, Sampled]], float]] = deque()
        self._idle = False
        self._completed_at = 0.0
        self._outputs: list[Output] = []
        self._deltas: list[Delta] = []

    # --- commands -------------------------------------------------------------------------

    def handle(self, command: do.Command) -> Any:
        """Carry out a command between two steps.

        Returns:
            Its answer.

        Raises:
            Exception: the reason why it failed.
        """
        try:
            return self._handle(command)
        except Exception:
            raise
        except BaseException as error:
            raise as_exception(error) from None

    def _handle(self, command: do.Command) -> Any:
        match command:
            case do.Submit(request):
                return self.submit(request)
            case do.Cancel(request_id):
                return self.cancel(request_id)
            case do.Lease(conversation, ttl, value):
                return self.cache.lease(conversation, self._clock(), ttl, value)
            case do.Release(conversation, evict):
                return self._release(conversation, evict)
            case do.Demote(conversation):
                return self.cache.demote(conversation)
            case do.Prefetch(conversation):
                return self.cache.prefetch(conversation)
            case do.Fork(parent, child):
                return self.cache.fork(parent, child)
            case do.Stats():
                return self.stats()
            case do.Export(conversation):
                self._check_awake()
                return self._exchange.export(conversation, self.weights)
            case do.Import(conversation, data, salt):
                return self._import(conversation, data, salt)
            case do.UpdateWeights(version, folder, tensors):
                return self._update_weights(version, folder, tensors)
            case do.Sleep():
                return self._sleep()
            case do.WakeUp():
                return self._wake()
        assert_never(command)

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request.

        Raises:
            ContextTooLong: if it can never run.
            EngineError: if it is inconsistent.
            ConfigError: if its grammar cannot be compiled.
        """
        made = self.requests.make(request, self._salt(request.salt))
        self._cancel_extension(request.conversation)
        self.cache.truncate(request.conversation, made.seq.tokens)
        self.batch.add(made.seq)
        self.requests.add(made)

    def cancel(self, request_id: str) -> Delta | None:
        """End a request and free its blocks at once; return its last delta, None if unknown."""
        found = self.requests.open.get(request_id)
        if found is None:
            return None
        self.requests.close(found.seq)
        self._outputs = [output for output in self._outputs if output.seq is not found.seq]
        self.batch.cancel(request_id)
        return found.delta(FinishReason.CANCELLED, self._clock)

    def stats(self) -> EngineStats:
        """Return the present gauges and counters."""
        return EngineStats(
            batch=self.batch.stats(),
            cache=self.cache.stats(),
            model_seconds=self.model_seconds,
            overhead_seconds=self.overhead_seconds,
            weights=self.weights,
            asleep=self.asleep,
        )

    def _salt(self, salt: bytes) -> bytes:
        """Prefix a salt with the weights version, so that KV of old weights is never matched."""
        return self.weights.encode() + b"\0" + salt if self.weights else salt

    def _cancel_extension(self, conversation: str) -> None:
        """Cancel a conversation's running `extend`; its next request reuses what it computed."""
        running = self.requests.pop_extension(conversation)
        if running is not None and (delta := self.cancel(running)) is not None:
            self._deltas.append(delta)

    def _release(self, conversation: str, evict: bool) -> KVReply:
        self._cancel_extension(conversation)
        for request in self.requests.open.values():
            request.seq.released |= request.seq.conversation == conversation
        return self.cache.release(conversation, evict=evict)

    def _check_awake(self) -> None:
        if self.asleep:
            raise EngineError("the engine is asleep: wake it first")

    def _import(self, conversation: str, data: bytes, salt: bytes) -> KVReply:
        self._check_awake()
        reply = self._exchange.restore(conversation, data, self._salt(salt), self.weights)
        self._collect_failures()
        return reply

    def _update_weights(
        self, version: str, folder: str | None, tensors: dict[str, Any] | None
    ) -> None:
        """Replace the weights; nothing has changed if this raises.

        Raises:
            CheckpointError: if the folder cannot be read.
            ConfigError: if the weights do not fit.
        """
        self._check_awake()
        if version == self.weights:
            raise ConfigError(f"weights {version!r} are loaded: name the new ones otherwise")
        weights = tensors
        if folder is not None and self._load_weights is not None:
            weights = self._load_weights(folder)
        if weights is None:
            raise ConfigError("update_weights needs a checkpoint folder or tensors by name")
        self._runner.update(weights)
        self._settle()
        self.weights = version
        exchange = self._exchange
        if exchange.fingerprint is not None and self._digest is not None:
            exchange.fingerprint = replace(exchange.fingerprint, digest=self._digest(weights))
        for request in self.requests.open.values():
            request.seq.salt, request.seq.hashes = self._salt(request.salt), []
        self.cache.remove_all()

    def _settle(self) -> None:
        """Wait for all steps, preempt all sequences, and wait for all copies."""
        while self._launched:
            self._complete()
        self.batch.preempt_all()
        self.transfers.finish()
        self._collect_failures()

    def _sleep(self) -> None:
        if not self.asleep:
            self._settle()
            self.cache.evict_all()
            self._start_copies()
            self._runner.sleep()
            self.asleep = True

    def _wake(self) -> None:
        if self.asleep:
            self._runner.wake()
            self.asleep = False

    def close(self) -> None:
        """Give all resources back; no step may follow."""
        self._runner.close()

    # --- steps ----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Return whether a step would do anything."""
        waiting = bool(
            self._launched or self._outputs or self._deltas or self.cache.copies_in_flight
        )
        return waiting or (len(self.batch) > 0 and not self.asleep)

    def step(self) -> list[Delta]:
        """Run both halves of a step; return the deltas of the step before."""
        deltas = self.prepare()
        self.compute()
        return deltas

    def prepare(self) -> list[Delta]:
        """Plan and launch the next step, then post-process the last one; return its deltas."""
        began = self._clock()
        with self._faults.tolerate("ending leases"):
            self.cache.expire(began)
        self._poll_copies(0.0)
        plan, preempted = self._schedule()
        if self._start_copies() and plan is not None:
            self._launch(plan, began)
        elif plan is not None:  # blocks that it overwrites could not be saved
            self._outputs += self.batch.fail_step(
                plan, EngineError("copies between the tiers could not be started")
            )
        deltas, self._deltas = self._deltas, []
        outputs, self._outputs = self._outputs, []
        requests = self.requests
        deltas += [requests.deliver(o) for o in outputs if o.seq.id in requests.open]
        gone = [seq.id for seq in preempted if seq.id in requests.open]
        deltas += [Delta(name, (), "", preempted=True) for name in gone]
        self.overhead_seconds += self._clock() - began
        return deltas

    def _schedule(self) -> tuple[StepPlan | None, list[Sequence]]:
        """Plan the next step, if one may be launched; return it and the preempted sequences."""
        if self.asleep or len(self._launched) >= self._depth:
            return None, []
        plan = None
        with self._faults.tolerate("planning a step"):
            plan = self.batch.schedule()
        self._idle = plan is None
        self._collect_failures()
        return plan, self.batch.preempted

    def _launch(self, plan: StepPlan, now: float) -> None:
        try:
            for chunk in plan.chunks:
                self.requests.open[chunk.seq.id].start(chunk, now)
            at = self._clock()
            result = self._runner.launch(plan)
            if self._runner.async_launch:
                self.batch.mark_launched(plan)
        except Exception as error:
            self._outputs += self.batch.fail_step(plan, error)
        else:
            self._launched.append((plan, result, at))

    def compute(self) -> None:
        """Wait for the oldest step in flight, unless another can be launched first.

        A step that fails ends only the sequence that fails alone.
        """
        if self._launched:
            if len(self._launched) >= self._depth or self._idle or self.asleep:
                self._complete()
        elif not self._outputs and self.cache.copies_in_flight:
            self._poll_copies(POLL_SECONDS)  # every sequence waits for a copy

    @property
    def _depth(self) -> int:
        """Return how many steps may be in flight."""
        return 2 if self._runner.async_launch and not self.batch.needs_sync else 1

    def _complete(self) -> None:
        plan, result, launched = self._launched.popleft()
        # an asynchronous step begins when it is launched or the one before it ends
        began = max(launched, self._completed_at) if self._runner.async_launch else self._clock()
        try:
            sampled = result()
            done = self._completed_at = self._clock()
            self._outputs += self.batch.complete(plan, sampled)
        except BaseException as error:
            self._outputs += self.batch.fail_step(plan, as_exception(error))
            return
        self._faults.reset()
        with self._faults.tolerate("measuring a step"):
            self.model_seconds += done - began
            self._measure(plan, done - began)
            self.overhead_seconds += self._clock() - done

    def _measure(self, plan: StepPlan, seconds: float) -> None:
        """Update the cost of prefill, and decide whether copying blocks both ways is cheaper."""
        tokens = sum(len(chunk.tokens) for chunk in plan.chunks)
        if tokens < 2 * self.info.block_size or seconds <= 0:
            return
        each = seconds / tokens
        known = self.prefill_seconds
        self.prefill_seconds = (1 - _SMOOTHING) * known + _SMOOTHING * each if known else each
        copying = 2 * self.copy_seconds / self.info.block_size
        self.cache.spill = copying < self.prefill_seconds

    def _start_copies(self) -> bool:
        """Start the copies that were decided; return whether the next step may run."""
        started = self.transfers.start()
        self._collect_failures()
        return started

    def _poll_copies(self, wait: float) -> None:
        self.transfers.poll(wait)
        self._collect_failures()

    def _collect_failures(self) -> None:
        """Queue the sequences that failed outside a step for delivery."""
        if self.batch.failures:
            self._outputs += self.batch.take_failures()


__all__ = ["EngineCore"]
