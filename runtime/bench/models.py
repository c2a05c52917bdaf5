"""Models that the benchmarks run on: public shapes and small ones, over random weights."""

import torch

from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.hosting.build import build
from drawloom.engine.models.checkpoint import dummy
from drawloom.engine.runners.cpu_runner import ModelRunner
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.runtime.dispatch.backends import tiny_model

LLAMA_8B = ModelConfig(
    family="llama",
    vocab_size=128256,
    hidden_size=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    max_position=131072,
    rope_theta=500000.0,
    rms_eps=1e-5,
)
LLAMA_1B = ModelConfig(
    family="llama",
    vocab_size=128256,
    hidden_size=2048,
    layers=16,
    heads=32,
    kv_heads=8,
    head_dim=64,
    intermediate_size=8192,
    max_position=131072,
    rope_theta=500000.0,
    rms_eps=1e-5,
    tied=True,
)
QWEN_06B = ModelConfig(
    family="qwen3",
    vocab_size=151936,
    hidden_size=1024,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    intermediate_size=3072,
    max_position=40960,
    rope_theta=1e6,
    tied=True,
    qk_norm=True,
)
TINY = ModelConfig(
    family="llama",
    vocab_size=1100,
    hidden_size=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    max_position=2048,
    dtype="float32",
)


def small_llama(
    layers: int = 14, hidden: int = 512, vocabulary: int = 32000, context: int = 8192
) -> ModelConfig:
    """Return the shape of a small Llama; 60 million parameters by default."""
    return ModelConfig(
        family="llama",
        vocab_size=vocabulary,
        hidden_size=hidden,
        layers=layers,
        heads=8,
        kv_heads=4,
        head_dim=hidden // 8,
        intermediate_size=hidden * 3 // 2 * 2,
        max_position=context,
        dtype="float32",
    )


def multiplied_weights(spec: ModelConfig) -> int:
    """Return the number of weights that a token is multiplied with: all but the embedding."""
    heads = (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim * spec.hidden_size
    layer = heads + 3 * spec.hidden_size * spec.intermediate_size
    return spec.layers * layer + spec.vocab_size * spec.hidden_size


def kv_bytes(spec: ModelConfig, width: int) -> int:
    """Return the bytes of KV of one token, at `width` bytes a number."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * width


def random_weights(spec: ModelConfig, device: torch.device) -> dict[str, torch.Tensor]:
    """Return random weights on a device: bfloat16 on a GPU, else float32."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return dummy(spec, dtype, device=device)


def make_engine(
    spec: ModelConfig,
    weights: dict[str, torch.Tensor],
    config: EngineConfig,
    device: torch.device,
    runner: type[ModelRunner] | None = None,
) -> EngineCore:
    """Return an engine over random weights; its text means nothing.

    Args:
        spec: the model's shape.
        weights: tensors by name, on `device`.
        config: sizes of the KV cache and of batches.
        device: where it computes.
        runner: the runner to use whatever the device; by default the device's own.
    """
    tokenizer = Tokenizer.load(tiny_model())
    tokenizer.size = spec.vocab_size
    return build(spec, dict(weights), tokenizer, config, device, runner=runner)


__all__ = [
    "LLAMA_1B",
    "LLAMA_8B",
    "QWEN_06B",
    "TINY",
    "kv_bytes",
    "make_engine",
    "multiplied_weights",
    "random_weights",
    "small_llama",
]
