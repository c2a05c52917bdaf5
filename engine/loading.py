"""From a checkpoint, or weights in memory, to an engine core."""

from dataclasses import replace
from hashlib import blake2b

import torch
from torch import Tensor

from drawloom.engine import checkpoint
from drawloom.engine.base import EngineInfo
from drawloom.engine.cache import KVCache, WriteThrough
from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core import EngineCore
from drawloom.engine.grammar import LLGuidance
from drawloom.engine.portable import Fingerprint
from drawloom.engine.runner import ModelRunner, pick_device
from drawloom.engine.tokenizer import Tokenizer
from drawloom.errors import ConfigError, EngineError

_CPU_KV_BYTES = 1 << 30


def load(
    model: str,
    config: EngineConfig,
    id: str = "engine-0",
    runner: type[ModelRunner] | None = None,
) -> EngineCore:
    """Load a checkpoint from a folder or the hub. Raises `CheckpointError`, `ConfigError`."""
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
    """An engine over weights that are already in memory; `runner` is chosen by the device."""
    config = config.on(device.type)
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
    try:
        kind = runner or _runner(device, config)
        sized = replace(spec, max_position=limit)  # the tables of positions need no more
        made = kind(sized, weights, config, blocks, device, config.host_blocks)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise EngineError(f"no memory for the model and {blocks} KV blocks: {error}") from None
    cache = KVCache(
        blocks,
        config.block_size,
        config.lease_budget,
        host_blocks=config.host_blocks,
        window=spec.window,
        write_through=WriteThrough(config.write_through),
    )
    core = EngineCore(
        EngineInfo(
            id, name, str(device), limit, capacity, config.block_size,
            config.host_blocks * config.block_size,
        ),
        cache,
        made,
        tokenizer,
        max_tokens=config.max_batch_tokens,
        max_sequences=config.max_sequences,
        eos_ids=spec.eos_ids,
        grammars=LLGuidance(tokenizer, spec.eos_ids),
        fingerprint=fingerprint(spec, weights, config.block_size),
        load_weights=lambda folder: _reload(folder, spec, dtype),
    )  # fmt: skip
    core.copy_seconds = made.copy_seconds()
    return core


def _runner(device: torch.device, config: EngineConfig) -> type[ModelRunner]:
    if device.type != "cuda" or config.deterministic:
        return ModelRunner
    from drawloom.engine.gpu import GpuRunner

    return GpuRunner


def _reload(folder: str, spec: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    return checkpoint.load(checkpoint.resolve(folder), spec, dtype)


def fingerprint(spec: ModelConfig, weights: dict[str, Tensor], block_size: int) -> Fingerprint:
    """What an engine's KV depends on."""
    names = ("model.norm.weight", "model.layers.0.self_attn.k_proj.weight")
    few = b"".join(weights[n].flatten()[:4096].float().cpu().numpy().tobytes() for n in names)
    return Fingerprint(
        spec.layers,
        spec.kv_heads,
        spec.head_dim,
        spec.vocab_size,
        f"{spec.rope_theta} {spec.rope_scaling}",
        str(weights["model.norm.weight"].dtype),
        block_size,
        blake2b(few, digest_size=8).hexdigest(),
    )


def pick_dtype(config: EngineConfig, spec: ModelConfig, device: torch.device) -> torch.dtype:
    """The type to compute in: as asked, else float32 on a CPU and the checkpoint's on a GPU."""
    if config.dtype != "auto":
        return torch.float32 if config.dtype == "float32" else torch.bfloat16
    if device.type == "cpu" or spec.dtype == "float32":
        return torch.float32
    return torch.bfloat16


def _free_bytes(device: torch.device, config: EngineConfig, needed: int) -> int:
    """For KV, of what is left when the weights have what they need."""
    if device.type != "cuda":
        return _CPU_KV_BYTES
    left = torch.cuda.mem_get_info(device)[0] - needed
    if left <= 0:
        raise EngineError(
            f"the weights need {needed / 1e9:.1f} GB, more than this GPU has free: choose a "
            "smaller model, or another GPU with device='cuda:N'"
        )
    return int(left * config.kv_memory)


__all__ = ["build", "fingerprint", "load", "pick_dtype"]
