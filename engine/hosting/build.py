"""Construction of an engine core from a checkpoint, or from weights in memory."""

import json
from dataclasses import asdict, replace
from hashlib import blake2b

import torch
from torch import Tensor

from drawloom.engine.api.engine import EngineInfo
from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.kvcache.kv_export import Fingerprint
from drawloom.engine.models import checkpoint
from drawloom.engine.runners.cpu_runner import ModelRunner, pick_device
from drawloom.engine.text.grammar import LLGuidance
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import CheckpointError, ConfigError, EngineError

_CPU_KV_BYTES = 1 << 30
_SAMPLED = 4096
_NO_NUMBERS = ("eos_ids", "dtype", "max_position", "tied")


def load(
    model: str,
    config: EngineConfig,
    id: str = "engine-0",
    runner: type[ModelRunner] | None = None,
) -> EngineCore:
    """Load a checkpoint and make its engine.

    Args:
        model: folder, or id on the hub.
        id: of the engine.
        runner: by default chosen by the device.

    Raises:
        CheckpointError: if the model cannot be read.
        ConfigError: if the configuration does not fit it.
    """
    device = pick_device(config.device)
    folder = checkpoint.resolve(model)
    spec, tokenizer = ModelConfig.load(folder), Tokenizer.load(folder)
    weights = checkpoint.load(folder, spec, pick_dtype(config, spec, device))
    return build(spec, weights, tokenizer, config, device, name=model, id=id, runner=runner)


def build(
    spec: ModelConfig,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    config: EngineConfig,
    device: torch.device,
    *,
    name: str = "model",
    id: str = "engine-0",
    runner: type[ModelRunner] | None = None,
) -> EngineCore:
    """Make an engine from weights in memory.

    Args:
        weights: by name; the engine removes them from the dict.
        name: of the model.
        id: of the engine.
        runner: by default chosen by the device.

    Raises:
        ConfigError: if the configuration does not fit the device.
        EngineError: if the device's memory is not enough.
    """
    config, unknown = config.on(device.type), _check_vocabulary(spec, tokenizer)
    if device.type == "cpu":
        torch.set_num_threads(config.threads)
    elif config.weights == "int8":
        raise ConfigError("int8 weights are for a CPU so far: leave out weights='int8'")
    dtype = weights["model.norm.weight"].dtype
    per_token = 2 * spec.layers * spec.kv_heads * spec.head_dim * dtype.itemsize
    needed = sum(tensor.nbytes for tensor in weights.values())
    blocks = config.blocks(per_token, _free_bytes(device, config, needed))
    capacity = blocks * config.block_size
    limit = spec.max_position if spec.window else min(spec.max_position, capacity)
    printed = fingerprint(spec, weights, config)
    try:
        kind = runner or _runner(device, config)
        sized = replace(spec, max_position=limit)  # the tables of positions need no more
        made = kind(sized, weights, config, blocks, device, config.host_blocks)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise EngineError(f"no memory for the model and {blocks} KV blocks: {error}") from None
    made.unknown = unknown
    cache = KVCache(
        blocks,
        config.block_size,
        config.lease_budget,
        host_blocks=config.host_blocks,
        window=spec.window,
    )
    core = EngineCore(
        EngineInfo(
            id=id,
            model=name,
            device=str(device),
            max_context=limit,
            kv_tokens=capacity,
            block_size=config.block_size,
            host_tokens=config.host_blocks * config.block_size,
            vocabulary=spec.vocab_size,
            dtype=str(dtype).removeprefix("torch."),
            weights=config.weights,
            threads=config.threads if device.type == "cpu" else 0,
            max_sequences=config.max_sequences,
            max_batch_tokens=config.max_batch_tokens,
        ),
        cache,
        made,
        tokenizer,
        max_tokens=config.max_batch_tokens,
        max_sequences=config.max_sequences,
        eos_ids=spec.eos_ids,
        grammars=LLGuidance(tokenizer, spec.eos_ids),
        fingerprint=printed,
        digest=lambda weights: digest(spec, weights, dtype),
        load_weights=lambda folder: _reload(folder, spec, dtype),
    )
    core.copy_seconds = made.copy_seconds()
    return core


def _runner(device: torch.device, config: EngineConfig) -> type[ModelRunner]:
    if device.type != "cuda" or config.deterministic:
        return ModelRunner
    from drawloom.engine.runners.gpu_runner import GpuRunner

    return GpuRunner


def _reload(folder: str, spec: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    return checkpoint.load(checkpoint.resolve(folder), spec, dtype)


def fingerprint(spec: ModelConfig, weights: dict[str, Tensor], config: EngineConfig) -> Fingerprint:
    """Return the fingerprint of an engine: two that are equal can exchange KV."""
    dtype = weights["model.norm.weight"].dtype
    numbers = {name: value for name, value in asdict(spec).items() if name not in _NO_NUMBERS}
    numbers |= {"weights": config.weights, "deterministic": config.deterministic}
    return Fingerprint(
        layers=spec.layers,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        model=json.dumps(numbers, sort_keys=True),
        dtype=str(dtype).removeprefix("torch."),
        block_size=config.block_size,
        digest=digest(spec, weights, dtype),
    )


def digest(spec: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype) -> str:
    """Return a hash of a sample of every weight, in the engine's dtype."""
    found = blake2b(digest_size=16)
    for name in sorted(checkpoint.shapes(spec)):
        weight = weights[name].reshape(-1)
        step = max(1, weight.numel() // _SAMPLED) | 1  # odd, so that all columns are met
        some = weight[::step].to(dtype).float().cpu()
        found.update(name.encode())
        found.update(some.numpy().tobytes())
    return found.hexdigest()


def _check_vocabulary(spec: ModelConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of a model that its tokenizer does not have.

    Raises:
        CheckpointError: the tokenizer has ids that the model does not have.
    """
    known = tokenizer.ids()
    if known and max(known) >= spec.vocab_size:
        raise CheckpointError(
            f"the tokenizer has ids up to {max(known)}, the model only {spec.vocab_size} "
            "(vocab_size in config.json): this tokenizer.json belongs to another model, or the "
            "model's embeddings were not resized for tokens that were added"
        )
    return tuple(id for id in range(spec.vocab_size) if id not in known)


def pick_dtype(config: EngineConfig, spec: ModelConfig, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in: as configured, or the device's default.

    The default is float32 on a CPU, and on a GPU the checkpoint's.
    """
    if config.dtype != "auto":
        return torch.float32 if config.dtype == "float32" else torch.bfloat16
    if device.type == "cpu" or spec.dtype == "float32":
        return torch.float32
    return torch.bfloat16


def _free_bytes(device: torch.device, config: EngineConfig, needed: int) -> int:
    """Return the bytes of device memory for KV.

    Args:
        needed: bytes of the weights, which are not on the device yet.

    Raises:
        EngineError: if the weights do not fit.
    """
    if device.type != "cuda":
        return _CPU_KV_BYTES
    left = torch.cuda.mem_get_info(device)[0] - needed
    if left <= 0:
        raise EngineError(
            f"the weights need {needed / 1e9:.1f} GB, more than this GPU has free: choose a "
            "smaller model, or another GPU with device='cuda:N'"
        )
    return int(left * config.kv_memory)


__all__ = ["build", "digest", "fingerprint", "load", "pick_dtype"]
