"""The engine core: cache, batch and runner behind one step. Synchronous and without torch: a
thread, a child process, a simulator or a test drives it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from drawloom.engine import commands as do
from drawloom.engine.base import Delta, EngineInfo, EngineStats, GenerateRequest, Usage
from drawloom.engine.batch import Batch, Output
from drawloom.engine.cache import KVCache
from drawloom.engine.plan import Runner, Sampled, StepPlan
from drawloom.engine.portable import Fingerprint, pack, unpack
from drawloom.engine.sequence import FinishReason, Guide, Sequence
from drawloom.engine.tokenizer import TextStream, Tokenizer
from drawloom.errors import ConfigError, EngineError
from drawloom.leases import KVReply, LeaseStatus

_WAIT = 0.02
_ETA_SLACK = 1.5
_LONGEST_LEASE = 60.0
_LEARN = 0.1


class Grammars(Protocol):
    """Makes guides from grammars. Raises `ConfigError` for one that cannot be compiled."""

    def guide(self, kind: str, text: str, after: str) -> Guide: ...


@dataclass(slots=True)
class _Request:
    seq: Sequence
    salt: bytes
    text: TextStream
    submitted: float
    started: float = 0.0
    first: float = 0.0
    cached: int = 0
    restored: int = 0


class EngineCore:
    """Requests and commands in, deltas and answers out.

    A step has two halves: `prepare` schedules the next and launches it, then post-processes the
    last (text, stop strings, deltas) while the device works; `compute` waits for the device and
    books the result. With a runner that goes `ahead`, `prepare` launches the next step before
    the last one is known, so that the device never waits for the host. `clock` is
    `time.monotonic` unless a test or a simulator brings its own.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info, self.cache, self.tokenizer = info, cache, tokenizer
        self.weights, self.asleep = "", False
        self.prefill_seconds = self.copy_seconds = 0.0
        self.model_seconds = self.host_seconds = 0.0
        self._runner, self._clock = runner, clock
        self._grammars, self._fingerprint = grammars, fingerprint
        self._load_weights = load_weights
        self._requests: dict[str, _Request] = {}
        self._extending: dict[str, str] = {}
        self._launched: deque[tuple[StepPlan, Callable[[], dict[str, Sampled]], float]] = deque()
        self._idle = False
        self._done = 0.0
        self._outputs: list[Output] = []
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
            do.Lease: lambda c: self.cache.lineages.lease(c.lineage, self._clock(), c.ttl, c.value),
            do.Renew: lambda c: self.cache.lineages.renew(c.lineage, self._clock(), c.ttl),
            do.Release: self._release,
            do.Demote: lambda c: self.cache.lineages.demote(c.lineage),
            do.Prefetch: lambda c: self.cache.lineages.prefetch(c.lineage),
            do.Fork: lambda c: self.cache.lineages.fork(c.parent, c.child),
            do.ToolStarted: self._tool_started,
            do.ToolFinished: lambda c: self.cache.lineages.prefetch(c.lineage),
            do.Branch: self._branch,
            do.Done: lambda c: self._release(do.Release(c.lineage)),
            do.Export: self._export,
            do.Import: self._import,
            do.UpdateWeights: self._update_weights,
            do.Sleep: lambda c: self._sleep(),
            do.Wake: lambda c: self._wake(),
            do.Stats: lambda c: self.stats(),
        }

    def handle(self, command: do.Command) -> Any:
        """Carry out a command between two steps; its answer, or what it raises."""
        return self._does[type(command)](command)

    # --- requests -------------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. Raises `ContextTooLong` when it can never run, `EngineError` and
        `ConfigError` when it makes no sense."""
        if request.id in self._requests:
            raise EngineError(f"request {request.id} is already running")
        size = self.tokenizer.size
        if request.tokens and not (min(request.tokens) >= 0 and max(request.tokens) < size):
            bad = next(t for t in request.tokens if not 0 <= t < size)
            raise EngineError(f"token id {bad} is outside the vocabulary of {size}")
        if any(not 0 <= token < size for token, _ in request.params.logit_bias):
            raise EngineError(f"logit_bias names a token outside the vocabulary of {size}")
        if not 0 <= request.said <= min(len(request.tokens) - 1, request.params.max_tokens):
            raise EngineError(f"request {request.id}: said={request.said} is more than was given")
        seq = Sequence(
            request.id,
            request.lineage,
            list(request.tokens),
            request.params,
            self._salt(request.salt),
            request.priority,
            said=request.said,
            guide=self._guide(request),
            noise=request.noise,
        )
        prompt = len(request.tokens) - request.said
        text = self.tokenizer.stream(
            request.params.stop,
            special=request.params.show_special,
            after=request.tokens[:prompt],
        )
        for token in request.tokens[prompt:]:
            text.push(token)
        self._supersede(request.lineage)
        self.batch.add(seq)
        self._requests[request.id] = _Request(seq, request.salt, text, self._clock())
        if not request.params.max_tokens and request.params.score_from < 0:
            self._extending[request.lineage] = request.id

    def _salt(self, salt: bytes) -> bytes:
        """KV of other weights is other KV."""
        return self.weights.encode() + b"\0" + salt if self.weights else salt

    def _guide(self, request: GenerateRequest) -> Guide | None:
        grammar = request.grammar
        if grammar is None:
            return None
        if self._grammars is None:
            raise ConfigError("this engine knows no grammars: install llguidance")
        guide = self._grammars.guide(grammar.kind, grammar.text, grammar.after)
        for token in request.tokens[len(request.tokens) - request.said :]:
            guide.accept(token)
        return guide

    def _supersede(self, lineage: str) -> None:
        """What a lineage is being extended by ends where it is; the next one goes on from it."""
        running = self._extending.pop(lineage, None)
        if running is not None and (delta := self.cancel(running)) is not None:
            self._deltas.append(delta)

    def cancel(self, request: str) -> Delta | None:
        """End a request; what it held is free when this returns."""
        found = self._requests.get(request)
        if found is None:
            return None
        self.batch.cancel(request)
        return self._delta(found, FinishReason.CANCELLED)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        waiting = bool(
            self._launched or self._outputs or self._deltas or self.cache.index.in_flight
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
        began = now = self._clock()
        self.cache.lineages.expire(now)
        self._arrive(0.0)
        plan, gave_way = None, []
        if not self.asleep and len(self._launched) < self._depth:
            plan = self.batch.schedule()
            self._idle, gave_way = plan is None, self.batch.gave_way
        self._transfer()
        if plan is not None:
            for chunk in plan.chunks:
                request = self._requests[chunk.seq.id]
                if not request.started:
                    request.started = now
                    request.cached, request.restored = chunk.seq.hit, chunk.seq.hit_host
            at = self._clock()
            self._launched.append((plan, self._runner.launch(plan), at))
            if self._runner.ahead:
                self.batch.launched(plan)
        outputs, self._outputs = self._outputs, []
        deltas, self._deltas = self._deltas, []
        deltas += [self._deliver(o) for o in outputs if o.seq.id in self._requests]
        gone = [seq.id for seq in gave_way if seq.id in self._requests]
        deltas += [Delta(name, (), "", preempted=True) for name in gone]
        self.host_seconds += self._clock() - began
        return deltas

    def compute(self) -> None:
        """Wait for the oldest step under way, unless another can be launched first. A failing step
        ends only the sequence that fails alone."""
        if self._launched:
            if len(self._launched) >= self._depth or self._idle or self.asleep:
                self._complete()
        elif not self._outputs and self.cache.index.in_flight:
            self._arrive(_WAIT)  # all wait for copies

    @property
    def _depth(self) -> int:
        """Steps that may be under way."""
        return 2 if self._runner.ahead and not self.batch.close else 1

    def _complete(self) -> None:
        plan, result, launched = self._launched.popleft()
        # a step of a runner that goes ahead begins when it is launched or the one before it ends
        began = max(launched, self._done) if self._runner.ahead else self._clock()
        try:
            sampled = result()
        except Exception as error:
            for output in self.batch.failed(plan, error):
                self._deltas.append(self._fail(output, error))
            return
        done = self._done = self._clock()
        self._outputs += self.batch.complete(plan, sampled)
        self.model_seconds += done - began
        self._learn(plan, done - began)
        self.host_seconds += self._clock() - done

    def _learn(self, plan: StepPlan, seconds: float) -> None:
        """What a token of prefill costs, and so whether copying blocks out and back is cheaper."""
        tokens = sum(len(chunk.tokens) for chunk in plan.chunks)
        if tokens < 2 * self.info.block_size or seconds <= 0:
            return
        each = seconds / tokens
        known = self.prefill_seconds
        self.prefill_seconds = (1 - _LEARN) * known + _LEARN * each if known else each
        copying = 2 * self.copy_seconds / self.info.block_size
        self.cache.index.spill = copying < self.prefill_seconds

    def _transfer(self) -> None:
        copies = self.cache.drain()
        if copies:
            self._runner.transfer(copies)

    def _arrive(self, wait: float) -> None:
        if not self.cache.index.in_flight:
            return
        self._transfer()
        saved, loaded = self._runner.arrived(wait)
        for block in saved:
            self.cache.saved(block)
        for block in loaded:
            self.cache.loaded(block)

    def _deliver(self, output: Output) -> Delta:
        seq, token, finish = output.seq, output.token, output.finish
        request = self._requests[seq.id]
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
        request: _Request,
        finish: FinishReason | None,
        token: int | None = None,
        text: str = "",
    ) -> Delta:
        seq = request.seq
        reports = token is not None and seq.params.logprobs
        logprobs = (seq.logprobs.pop(0),) if reports else ()
        tops = (seq.tops.pop(0),) if reports and seq.params.top_logprobs else ()
        tokens = () if token is None else (token,)
        if finish is None:
            return Delta(seq.id, tokens, text, logprobs, tops=tops)
        self._forget(seq)
        text += request.text.flush()
        usage, scores = self._usage(request), tuple(seq.scores)
        return Delta(seq.id, tokens, text, logprobs, finish, usage, None, tops, scores)

    def _forget(self, seq: Sequence) -> None:
        del self._requests[seq.id]
        if self._extending.get(seq.lineage) == seq.id:
            del self._extending[seq.lineage]

    def _usage(self, request: _Request) -> Usage:
        seq, now = request.seq, self._clock()
        return Usage(
            seq.prompt_length,
            request.cached,
            seq.generated,
            seq.preemptions,
            request.submitted,
            request.started or now,
            request.first or now,
            now,
            request.restored,
        )

    def _fail(self, output: Output, error: Exception) -> Delta:
        request = self._requests[output.seq.id]
        self._forget(output.seq)
        failure = output.error or EngineError(f"the model failed on this request: {error!r}")
        usage = self._usage(request)
        return Delta(output.seq.id, (), "", (), FinishReason.ERROR, usage, failure)

    # --- verbs ----------------------------------------------------------------------------

    def _release(self, command: do.Release) -> KVReply:
        self._supersede(command.lineage)
        for request in self._requests.values():
            request.seq.orphan |= request.seq.lineage == command.lineage
        return self.cache.lineages.release(command.lineage, evict=command.evict)

    def _tool_started(self, command: do.ToolStarted) -> KVReply:
        """Keep what comes back soon; what stays away longer waits in host memory."""
        tokens = self.cache.lineages.length(command.lineage)
        value = tokens * self.prefill_seconds
        ttl = min(_LONGEST_LEASE, max(1.0, _ETA_SLACK * command.eta))
        away = 2 * self.copy_seconds * self.cache.blocks_for(tokens)
        if self.info.host_tokens and command.eta > max(1.0, 10 * away):
            return self.cache.lineages.demote(command.lineage)
        return self.cache.lineages.lease(command.lineage, self._clock(), ttl, value)

    def _branch(self, command: do.Branch) -> KVReply:
        replies = [self.cache.lineages.fork(command.parent, child) for child in command.children]
        return replies[0] if replies else KVReply(LeaseStatus.ACCEPTED, 0)

    def _export(self, command: do.Export) -> bytes:
        windowed = self.cache.window > 0
        found = None if windowed else self.cache.lineages.contents(command.lineage)
        if found is None or self._fingerprint is None or self.asleep:
            raise EngineError(f"lineage {command.lineage} is unknown here, or not exportable")
        self._transfer()
        tokens, places = found
        return pack(self._fingerprint, self.weights, tokens, self._runner.read(places))

    def _import(self, command: do.Import) -> KVReply:
        if self._fingerprint is None or self.asleep:
            raise EngineError("this engine takes no KV from elsewhere")
        tokens, data = unpack(self._fingerprint, self.weights, command.data)
        blocks = self.cache.adopt(command.lineage, tokens, self._salt(command.salt))
        self._transfer()  # what made room must be out before it is written over
        self._runner.write(blocks, data)
        covered = min(len(tokens), len(blocks) * self.info.block_size)
        whole = covered == len(tokens)
        return KVReply(LeaseStatus.ACCEPTED if whole else LeaseStatus.CLIPPED, covered)

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
        for request in self._requests.values():
            request.seq.salt, request.seq.hashes = self._salt(request.salt), []
        self.cache.forget_all()

    def _settle(self) -> None:
        """Nothing runs and no copy is in flight."""
        while self._launched:
            self._complete()
        self.batch.preempt_all()
        self._transfer()
        while self.cache.index.in_flight:
            self._arrive(_WAIT)

    def _sleep(self) -> None:
        if not self.asleep:
            self._settle()
            self.cache.empty_device()
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

    def stats(self) -> EngineStats:
        cache, batch, index = self.cache, self.batch, self.cache.index
        kv, work = cache.counters, batch.counters
        return EngineStats(
            running=batch.running,
            waiting=batch.waiting,
            parked=batch.parked,
            free_blocks=cache.pool.free,
            held_blocks=cache.held_blocks,
            leased_blocks=cache.leased_blocks,
            total_blocks=cache.pool.count,
            host_blocks=index.host_used,
            total_host_blocks=index.host_total,
            lineages=len(cache.lineages),
            steps=work.steps,
            prompt_tokens=kv.prompt_tokens,
            hit_tokens=kv.hit_tokens,
            hit_host_tokens=kv.hit_host_tokens,
            computed_tokens=work.computed_tokens,
            recomputed_tokens=kv.recomputed_tokens,
            generated_tokens=work.generated_tokens,
            preemptions=work.preemptions,
            lease_grants=kv.lease_grants,
            lease_clips=kv.lease_clips,
            lease_breaks=kv.lease_breaks,
            lease_regrets=kv.lease_regrets,
            regret_tokens=kv.regret_tokens,
            evictions=cache.index.evictions,
            demotions=kv.demotions,
            saved_blocks=kv.saved_blocks,
            loaded_blocks=kv.loaded_blocks,
            model_seconds=self.model_seconds,
            host_seconds=self.host_seconds,
            weights=self.weights,
            asleep=self.asleep,
        )


__all__ = ["EngineCore", "Grammars"]
