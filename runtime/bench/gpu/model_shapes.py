"""The models that are measured: public shapes, random weights."""

import torch

from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.models.checkpoint import dummy
from drawloom.engine.runners.gpu_runner import GpuRunner
from drawloom.runtime.bench.engine import engine_of

LLAMA_8B = ModelConfig(
    "llama", 128256, 4096, 32, 32, 8, 128, 14336, 131072, rope_theta=500000.0, rms_eps=1e-5
)
LLAMA_1B = ModelConfig(
    "llama", 128256, 2048, 16, 32, 8, 64, 8192, 131072, rope_theta=500000.0, rms_eps=1e-5, tied=True
)
QWEN_06B = ModelConfig(
    "qwen3", 151936, 1024, 28, 16, 8, 128, 3072, 40960, rope_theta=1e6, tied=True, qk_norm=True
)
TINY = ModelConfig("llama", 1100, 64, 2, 4, 2, 16, 96, 2048, dtype="float32")


def parameters(spec: ModelConfig) -> int:
    """Weights that a token is multiplied with: all but the embedding (the head is read)."""
    heads = (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim * spec.hidden_size
    layer = heads + 3 * spec.hidden_size * spec.intermediate_size
    return spec.layers * layer + spec.vocab_size * spec.hidden_size


def kv_bytes(spec: ModelConfig, width: int) -> int:
    """Of a token, with so many bytes a number."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * width


def weights(spec: ModelConfig, device: torch.device) -> dict[str, torch.Tensor]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return dummy(spec, dtype, device=device)


def engine(
    spec: ModelConfig,
    tensors: dict[str, torch.Tensor],
    device: torch.device,
    *,
    kv_tokens: int = 0,
    host_tokens: int = 0,
    sequences: int = 256,
    budget: int = 8192,
) -> EngineCore:
    """An engine over these weights, with the runner of a GPU whatever the device."""
    config = EngineConfig(
        kv_tokens=kv_tokens, kv_memory=0.6, host_tokens=host_tokens, max_sequences=sequences,
        max_batch_tokens=budget,
    )  # fmt: skip
    return engine_of(spec, tensors, config, device, GpuRunner)


__all__ = [
    "LLAMA_1B", "LLAMA_8B", "QWEN_06B", "TINY", "engine", "kv_bytes", "parameters", "weights",
]  # fmt: skip
