"""The engine core: cache, batch and runner behind one step. Synchronous and without torch: a
thread, a child process, a simulator or a test drives it."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import Delta, EngineInfo, GenerateRequest
from drawloom.engine.core.batch_members import Output, fault
from drawloom.engine.core.batch_scheduler import Batch
from drawloom.engine.core.kv_verbs import KVVerbs
from drawloom.engine.core.requests import Request
from drawloom.engine.core.step_plan import Runner, Sampled, StepPlan
from drawloom.engine.core.transfers import WAIT
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.kvcache.kv_export import Fingerprint
from drawloom.engine.sequence import FinishReason, Guide, Sequence
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import ConfigError, DrawloomError, EngineError
from drawloom.leases import KVReply

_LEARN = 0.1

log = logging.getLogger("drawloom.engine")


class Grammars(Protocol):
    """Makes guides from grammars. Raises `ConfigError` for one that cannot be compiled."""

    def guide(self, kind: str, text: str, after: str) -> Guide: ...


class EngineCore(KVVerbs):
    """Requests and commands in, deltas and answers out.

    A step has two halves: `prepare` schedules the next and launches it, then post-processes the
    last (text, stop strings, deltas) while the device works; `compute` waits for the device and
    books the result. With a runner that goes `ahead`, `prepare` launches the next step before
    the last one is known, so that the device never waits for the host. `clock` is
    `time.monotonic` unless a test or a simulator brings its own.

    An exception in any part of a step ends the request over which it happened; the others say what
    they would have said.
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
        super().__init__(info, cache, runner, fingerprint, clock)
        self.tokenizer = tokenizer
        self._grammars, self._load_weights, self._digest = grammars, load_weights, digest
        self._requests: dict[str, Request] = {}
        self._extending: dict[str, str] = {}
        self._launched: deque[tuple[StepPlan, Callable[[], dict[str, Sampled]], float]] = deque()
        self._idle = False
        self._done = 0.0
        self._deltas: list[Delta] = []
        self.batch = Batch(
            cache,
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            max_context=info.max_context,
            eos_ids=eos_ids,
            contiguous=info.device == "cpu",
        )
        self._does: dict[type[Any], Callable[[Any], Any]] = {
            do.Submit: lambda c: self.submit(c.request),
            do.Cancel: lambda c: self.cancel(c.request),
            do.Lease: lambda c: self.cache.lease(c.conversation, self._clock(), c.ttl, c.value),
            do.Release: self._release,
            do.Demote: lambda c: self.cache.demote(c.conversation),
            do.Prefetch: lambda c: self.cache.prefetch(c.conversation),
            do.Fork: lambda c: self.cache.fork(c.parent, c.child),
            do.Export: self._export,
            do.Import: self._import,
            do.UpdateWeights: self._update_weights,
            do.Sleep: lambda c: self._sleep(),
            do.Wake: lambda c: self._wake(),
            do.Stats: lambda c: self.stats(),
        }

    def handle(self, command: do.Command) -> Any:
        """Carry out a command between two steps; its answer, or the `Exception` it raises."""
        try:
            return self._does[type(command)](command)
        except Exception:
            raise
        except BaseException as error:
            raise fault(error) from None

    # --- requests -------------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. Raises `ContextTooLong` when it can never run, `EngineError` and
        `ConfigError` when it makes no sense."""
        if request.id in self._requests:
            raise EngineError(f"request {request.id} is already running")
        size = self.info.vocabulary or self.tokenizer.size
        if request.tokens and not (min(request.tokens) >= 0 and max(request.tokens) < size):
            bad = next(t for t in request.tokens if not 0 <= t < size)
            raise EngineError(f"token id {bad} is outside the vocabulary of {size}")
        if any(not 0 <= token < size for token, _ in request.params.logit_bias):
            raise EngineError(f"logit_bias names a token outside the vocabulary of {size}")
        resumed = request.resumed_tokens
        if not 0 <= resumed <= min(len(request.tokens) - 1, request.params.max_tokens):
            raise EngineError(
                f"request {request.id}: resumed_tokens={resumed} is out of range: the prompt "
                "before them needs a token, and they count as part of max_tokens"
            )
        seq = Sequence(
            request.id,
            request.conversation,
            list(request.tokens),
            request.params,
            self._salt(request.salt),
            request.priority,
            resumed_tokens=request.resumed_tokens,
            guide=self._guide(request),
            noise=request.noise,
        )
        prompt = len(request.tokens) - request.resumed_tokens
        text = self.tokenizer.stream(
            request.params.stop,
            special=request.params.show_special,
            after=request.tokens[:prompt],
        )
        for token in request.tokens[prompt:]:
            text.push(token)
        self._supersede(request.conversation)
        self.cache.truncate(request.conversation, seq.tokens)
        self.batch.add(seq)
        self._requests[request.id] = Request(seq, request.salt, text, self._clock())
        if not request.params.max_tokens and request.params.score_from < 0:
            self._extending[request.conversation] = request.id

    def _guide(self, request: GenerateRequest) -> Guide | None:
        grammar = request.grammar
        if grammar is None:
            return None
        if self._grammars is None:
            raise ConfigError("this engine knows no grammars: install llguidance")
        guide = self._grammars.guide(grammar.kind, grammar.text, grammar.after)
        for token in request.tokens[len(request.tokens) - request.resumed_tokens :]:
            guide.accept(token)
        return guide

    def _supersede(self, conversation: str) -> None:
        """End the extension of a conversation that runs; the next one reuses what it computed."""
        running = self._extending.pop(conversation, None)
        if running is not None and (delta := self.cancel(running)) is not None:
            self._deltas.append(delta)

    def cancel(self, request: str) -> Delta | None:
        """End a request; what it held is free when this returns."""
        found = self._requests.get(request)
        if found is None:
            return None
        self._forget(found.seq)
        self._outputs = [output for output in self._outputs if output.seq is not found.seq]
        self.batch.cancel(request)
        return found.delta(FinishReason.CANCELLED, self._clock)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        waiting = bool(
            self._launched or self._outputs or self._deltas or self.cache.copies_in_flight
        )
        return waiting or (len(self.batch) > 0 and not self.asleep)

    # --- steps ----------------------------------------------------------------------------

    def step(self) -> list[Delta]:
        """Both halves at once. The deltas are those of the step before."""
        deltas = self.prepare()
        self.compute()
        return deltas

    def prepare(self) -> list[Delta]:
        """Schedule and launch the next step, then post-process the last one."""
        began = self._clock()
        with self._fault("ending leases"):
            self.cache.expire(began)
        self._arrive(0.0)
        plan, preempted = self._schedule()
        if self._transfer() and plan is not None:
            self._launch(plan, began)
        elif plan is not None:  # what it overwrites could not be saved
            self._outputs += self.batch.failed(
                plan, EngineError("copies between the tiers could not be begun")
            )
        deltas, self._deltas = self._deltas, []
        outputs, self._outputs = self._outputs, []
        deltas += [self._deliver(o) for o in outputs if o.seq.id in self._requests]
        gone = [seq.id for seq in preempted if seq.id in self._requests]
        deltas += [Delta(name, (), "", preempted=True) for name in gone]
        self.overhead_seconds += self._clock() - began
        return deltas

    def _schedule(self) -> tuple[StepPlan | None, list[Sequence]]:
        """The next step, if there is to be one, and who had to give way for it."""
        if self.asleep or len(self._launched) >= self._depth:
            return None, []
        plan = None
        with self._fault("planning a step"):
            plan = self.batch.schedule()
        self._idle = plan is None
        self._outputs += self.batch.take_broken()
        return plan, self.batch.preempted

    def _launch(self, plan: StepPlan, now: float) -> None:
        try:
            for chunk in plan.chunks:
                self._requests[chunk.seq.id].begins(chunk, now)
            at = self._clock()
            result = self._runner.launch(plan)
            if self._runner.ahead:
                self.batch.launched(plan)
        except Exception as error:
            self._outputs += self.batch.failed(plan, error)
        else:
            self._launched.append((plan, result, at))

    def compute(self) -> None:
        """Wait for the oldest step under way, unless another can be launched first. A failing step
        ends only the sequence that fails alone."""
        if self._launched:
            if len(self._launched) >= self._depth or self._idle or self.asleep:
                self._complete()
        elif not self._outputs and self.cache.copies_in_flight:
            self._arrive(WAIT)  # all wait for copies

    @property
    def _depth(self) -> int:
        """Steps that may be under way."""
        return 2 if self._runner.ahead and not self.batch.needs_sync else 1

    def _complete(self) -> None:
        plan, result, launched = self._launched.popleft()
        # a step of a runner that goes ahead begins when it is launched or the one before it ends
        began = max(launched, self._done) if self._runner.ahead else self._clock()
        try:
            sampled = result()
            done = self._done = self._clock()
            self._outputs += self.batch.complete(plan, sampled)
        except BaseException as error:
            self._outputs += self.batch.failed(plan, fault(error))
            return
        self._faults = 0
        with self._fault("measuring a step"):
            self.model_seconds += done - began
            self._learn(plan, done - began)
            self.overhead_seconds += self._clock() - done

    def _learn(self, plan: StepPlan, seconds: float) -> None:
        """What a token of prefill costs, and so whether copying blocks out and back is cheaper."""
        tokens = sum(len(chunk.tokens) for chunk in plan.chunks)
        if tokens < 2 * self.info.block_size or seconds <= 0:
            return
        each = seconds / tokens
        known = self.prefill_seconds
        self.prefill_seconds = (1 - _LEARN) * known + _LEARN * each if known else each
        copying = 2 * self.copy_seconds / self.info.block_size
        self.cache.spill = copying < self.prefill_seconds

    # --- deltas ---------------------------------------------------------------------------

    def _deliver(self, output: Output) -> Delta:
        """The delta of an output. If making it fails, its request does."""
        request = self._requests[output.seq.id]
        if output.error is not None:
            return self._fail(request, output.error)
        try:
            return self._told(request, output)
        except BaseException as raised:
            error = fault(raised)
            self.batch.fail(output.seq, error)
            self.batch.take_broken()
            log.exception("the answer of request %s cannot be told", output.seq.id)
            if not isinstance(error, DrawloomError):
                error = EngineError(f"the answer cannot be told: {error!r}")
            return self._fail(request, error)

    def _told(self, request: Request, output: Output) -> Delta:
        seq, token, finish = output.seq, output.token, output.finish
        request.first = request.first or self._clock()
        if token is None:
            return self._delta(request, finish)
        ends = finish is FinishReason.STOP and self.batch.ends(seq, token)
        piece = "" if ends and seq.params.show_special else request.text.push(token)
        if request.text.stopped and finish is None:
            self.batch.cancel(seq.id)
            finish = FinishReason.STOP
        elif request.text.stopped:
            finish = FinishReason.STOP
        return self._delta(request, finish, token, piece)

    def _delta(
        self,
        request: Request,
        finish: FinishReason | None,
        token: int | None = None,
        text: str = "",
    ) -> Delta:
        delta = request.delta(finish, self._clock, token, text)
        if finish is not None:
            self._forget(request.seq)
        return delta

    def _fail(self, request: Request, error: DrawloomError) -> Delta:
        self._forget(request.seq)
        try:
            usage = request.usage(self._clock())
        except Exception:
            log.exception("there is no account of request %s", request.seq.id)
            usage = None
        return Delta(request.seq.id, (), "", (), FinishReason.ERROR, usage, error)

    def _forget(self, seq: Sequence) -> None:
        self._requests.pop(seq.id, None)
        if self._extending.get(seq.conversation) == seq.id:
            del self._extending[seq.conversation]

    # --- verbs ----------------------------------------------------------------------------

    def _release(self, command: do.Release) -> KVReply:
        self._supersede(command.conversation)
        for request in self._requests.values():
            request.seq.released |= request.seq.conversation == command.conversation
        return self.cache.release(command.conversation, evict=command.evict)

    def _update_weights(self, command: do.UpdateWeights) -> None:
        """Raises `CheckpointError` or `ConfigError`, and nothing has changed."""
        if self.asleep:
            raise EngineError("wake the engine before its weights are updated")
        if command.version == self.weights:
            raise ConfigError(
                f"weights {command.version!r} are loaded: name the new ones otherwise"
            )
        weights = command.tensors
        if command.folder is not None and self._load_weights is not None:
            weights = self._load_weights(command.folder)
        if weights is None:
            raise ConfigError("update_weights needs a checkpoint folder or tensors by name")
        self._runner.update(weights)
        self._settle()
        self.weights = command.version
        if self._fingerprint is not None and self._digest is not None:
            self._fingerprint = replace(self._fingerprint, digest=self._digest(weights))
        for request in self._requests.values():
            request.seq.salt, request.seq.hashes = self._salt(request.salt), []
        self.cache.remove_all()

    def _settle(self) -> None:
        """Nothing runs and no copy is in flight."""
        while self._launched:
            self._complete()
        self.batch.preempt_all()
        self._transfer()
        while self.cache.copies_in_flight:
            self._arrive(WAIT)

    def _sleep(self) -> None:
        if not self.asleep:
            self._settle()
            self.cache.evict_all()
            self._transfer()
            self._runner.sleep()
            self.asleep = True

    def _wake(self) -> None:
        if self.asleep:
            self._runner.wake()
            self.asleep = False

    def close(self) -> None:
        """No step may follow."""
        self._runner.close()


__all__ = ["EngineCore", "Grammars"]
