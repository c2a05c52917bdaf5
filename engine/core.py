"""The engine core: cache, batch and runner behind one `step`. Synchronous; a host drives it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from drawloom.engine import checkpoint
from drawloom.engine.base import Delta, EngineInfo, EngineStats, GenerateRequest, Usage
from drawloom.engine.batch import Batch, Output
from drawloom.engine.cache import KVCache
from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.runner import ModelRunner, Runner, pick_device
from drawloom.engine.sequence import FinishReason, Sequence
from drawloom.engine.tokenizer import TextStream, Tokenizer
from drawloom.errors import EngineError
from drawloom.leases import KVReply

_CPU_KV_BYTES = 1 << 30


@dataclass(slots=True)
class _Request:
    seq: Sequence
    text: TextStream
    submitted: float
    started: float = 0.0
    first: float = 0.0
    cached: int = 0


class EngineCore:
    """Requests in, deltas out. `clock` is `time.monotonic` unless a test brings its own."""

    def __init__(
        self,
        info: EngineInfo,
        cache: KVCache,
        runner: Runner,
        tokenizer: Tokenizer,
        config: EngineConfig,
        eos_ids: tuple[int, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info, self.cache, self.tokenizer = info, cache, tokenizer
        self._runner, self._clock = runner, clock
        self._requests: dict[str, _Request] = {}
        self.batch = Batch(
            cache,
            max_tokens=config.max_batch_tokens,
            max_sequences=config.max_sequences,
            max_context=info.max_context,
            eos_ids=eos_ids,
            contiguous=info.device == "cpu",
        )

    @classmethod
    def load(cls, model: str, config: EngineConfig, id: str = "engine-0") -> "EngineCore":
        """Load a checkpoint from a folder or the hub. Raises `CheckpointError`, `ConfigError`."""
        device = pick_device(config.device)
        folder = checkpoint.resolve(model)
        spec, tokenizer = ModelConfig.load(folder), Tokenizer.load(folder)
        dtype = pick_dtype(config, spec, device)
        weights = checkpoint.load(folder, spec, dtype)
        return cls.build(spec, weights, tokenizer, config, device, name=model, id=id)

    @classmethod
    def build(
        cls,
        spec: ModelConfig,
        weights: dict[str, torch.Tensor],
        tokenizer: Tokenizer,
        config: EngineConfig,
        device: torch.device,
        *,
        name: str = "model",
        id: str = "engine-0",
    ) -> "EngineCore":
        """An engine over weights that are already in memory."""
        if device.type == "cpu":
            torch.set_num_threads(config.threads)
        width = weights["model.norm.weight"].element_size()
        per_token = 2 * spec.layers * spec.kv_heads * spec.head_dim * width
        blocks = config.blocks(per_token, _free_bytes(device, config))
        try:
            runner = ModelRunner(spec, weights, config, blocks, device)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            raise EngineError(f"no memory for the model and {blocks} KV blocks: {error}") from None
        cache = KVCache(blocks, config.block_size, config.lease_budget)
        capacity = blocks * config.block_size
        limit = min(spec.max_position, capacity)
        info = EngineInfo(id, name, str(device), limit, capacity, config.block_size)
        return cls(info, cache, runner, tokenizer, config, spec.eos_ids)

    # --- requests -------------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. Raises `ContextTooLong` when it can never run."""
        if request.id in self._requests:
            raise EngineError(f"request {request.id} is already running")
        bad = next((t for t in request.tokens if not 0 <= t < self.tokenizer.size), None)
        if bad is not None:
            raise EngineError(f"token id {bad} is outside the vocabulary of {self.tokenizer.size}")
        seq = Sequence(
            request.id,
            request.lineage,
            list(request.tokens),
            request.params,
            request.salt,
            request.priority,
        )
        self.batch.add(seq)
        text = self.tokenizer.stream(request.params.stop)
        self._requests[request.id] = _Request(seq, text, self._clock())

    def cancel(self, request: str) -> Delta | None:
        """End a request; what it held is free when this returns."""
        found = self._requests.get(request)
        if found is None:
            return None
        self.batch.cancel(request)
        return self._delta(found, FinishReason.CANCELLED)

    @property
    def busy(self) -> bool:
        return len(self.batch) > 0

    def step(self) -> list[Delta]:
        """Compute one batch. A failing step ends only the sequence that fails on its own."""
        now = self._clock()
        self.cache.expire(now)
        plan = self.batch.schedule()
        if plan is None:
            return []
        for chunk in plan.chunks:
            request = self._requests[chunk.seq]
            if not request.started:
                request.started, request.cached = now, request.seq.hit
        try:
            sampled = self._runner.run(plan)
        except Exception as error:
            outputs = self.batch.failed(plan, error)
            return [self._fail(output, error) for output in outputs]
        return [self._deliver(output) for output in self.batch.complete(plan, sampled)]

    def _deliver(self, output: Output) -> Delta:
        seq, token, finish = output.seq, output.token, output.finish
        assert token is not None
        request = self._requests[seq.id]
        request.first = request.first or self._clock()
        piece = request.text.push(token)
        if request.text.stopped and finish is None:
            self.batch.cancel(seq.id)
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
        logprobs = (seq.logprobs[-1],) if token is not None and seq.params.logprobs else ()
        tokens = () if token is None else (token,)
        if finish is None:
            return Delta(seq.id, tokens, text, logprobs)
        del self._requests[seq.id]
        return Delta(
            seq.id, tokens, text + request.text.flush(), logprobs, finish, self._usage(request)
        )

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
        )

    def _fail(self, output: Output, error: Exception) -> Delta:
        request = self._requests.pop(output.seq.id)
        failure = output.error or EngineError(f"the model failed on this request: {error!r}")
        usage = self._usage(request)
        return Delta(output.seq.id, (), "", (), FinishReason.ERROR, usage, failure)

    # --- verbs ----------------------------------------------------------------------------

    def lease(self, lineage: str, ttl: float, value: float) -> KVReply:
        return self.cache.lease(lineage, self._clock(), ttl, value)

    def release(self, lineage: str, evict: bool) -> KVReply:
        return self.cache.release(lineage, evict=evict)

    def fork(self, parent: str, child: str) -> KVReply:
        return self.cache.fork(parent, child)

    def stats(self) -> EngineStats:
        cache, batch = self.cache, self.batch
        kv, work = cache.counters, batch.counters
        return EngineStats(
            running=batch.running,
            waiting=batch.waiting,
            free_blocks=cache.pool.free,
            held_blocks=cache.held_blocks,
            leased_blocks=cache.leased_blocks,
            total_blocks=cache.pool.count,
            lineages=cache.lineages,
            steps=work.steps,
            prompt_tokens=kv.prompt_tokens,
            hit_tokens=kv.hit_tokens,
            computed_tokens=work.computed_tokens,
            recomputed_tokens=kv.recomputed_tokens,
            generated_tokens=work.generated_tokens,
            preemptions=work.preemptions,
            lease_grants=kv.lease_grants,
            lease_clips=kv.lease_clips,
            lease_breaks=kv.lease_breaks,
        )


def pick_dtype(config: EngineConfig, spec: ModelConfig, device: torch.device) -> torch.dtype:
    """The type to compute in: as asked, else float32 on a CPU and the checkpoint's on a GPU."""
    if config.dtype != "auto":
        return torch.float32 if config.dtype == "float32" else torch.bfloat16
    if device.type == "cpu" or spec.dtype == "float32":
        return torch.float32
    return torch.bfloat16


def _free_bytes(device: torch.device, config: EngineConfig) -> int:
    if device.type != "cuda":
        return _CPU_KV_BYTES
    return int(torch.cuda.mem_get_info(device)[0] * config.kv_memory)


__all__ = ["EngineCore", "pick_dtype"]
