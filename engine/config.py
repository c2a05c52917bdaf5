"""What a model is (`ModelConfig`, read from a Hugging Face config) and how an engine runs it."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drawloom.errors import CheckpointError, ConfigError

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama family: pre-norm, rotary, grouped-query attention, gated MLP.

    `window` is how many tokens a token attends to, itself included (Mistral); 0 is all.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-6
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int = 0
    eos_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"

    @classmethod
    def load(cls, folder: Path) -> "ModelConfig":
        """Read ``config.json`` (and ``generation_config.json``). Raises `CheckpointError`."""
        config = _read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        extra = _read_json(generation) if generation.exists() else {}
        try:
            return cls._from_dict(config, extra)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}/config.json: {error!r} is missing or wrong") from None

    @classmethod
    def _from_dict(cls, c: dict[str, Any], extra: dict[str, Any]) -> "ModelConfig":
        names = c.get("architectures") or []
        family = next((ARCHITECTURES[n] for n in names if n in ARCHITECTURES), None)
        if family is None:
            known = ", ".join(sorted(ARCHITECTURES))
            raise CheckpointError(f"architecture {names} is not supported; known are: {known}")
        if c.get("use_sliding_window"):
            raise CheckpointError(
                "config.json: use_sliding_window mixes full and sliding layers, which this engine "
                "cannot do; set it to false to run the model with full attention"
            )
        rope = {**(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {})}
        heads = c["num_attention_heads"]
        bias = bool(c.get("attention_bias", False))
        return cls(
            family=family,
            vocab_size=c["vocab_size"],
            hidden_size=c["hidden_size"],
            layers=c["num_hidden_layers"],
            heads=heads,
            kv_heads=c.get("num_key_value_heads") or heads,
            head_dim=c.get("head_dim") or c["hidden_size"] // heads,
            intermediate_size=c["intermediate_size"],
            max_position=c["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta") or c.get("rope_theta") or 10000.0),
            rope_scaling=_scaling(rope),
            rms_eps=c.get("rms_norm_eps", 1e-6),
            tied=bool(c.get("tie_word_embeddings", False)),
            qkv_bias=True if family == "qwen2" else bias,
            output_bias=bias and family != "qwen2",
            mlp_bias=bool(c.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
            window=int(c.get("sliding_window") or 0) if family == "mistral" else 0,
            eos_ids=_ids(c.get("eos_token_id")) + _ids(extra.get("eos_token_id")),
            dtype=str(c.get("dtype") or c.get("torch_dtype") or "float32"),
        )


def _scaling(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"rope_type {kind!r} is not supported; known are: default, llama3")
    return RopeScaling(
        rope["factor"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )


def _ids(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (int(value),)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: is this a model folder?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine runs.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32``, ``bfloat16`` or ``auto`` (float32 on a CPU, the checkpoint's on a GPU).
        block_size: tokens a KV block holds.
        kv_tokens: tokens the KV cache holds, rounded up to blocks; 0 takes what fits
            (`kv_memory` of the free GPU memory, or 1 GiB on a CPU).
        weights: ``dense``, or ``int8``: one byte a weight with a scale for each output, activations
            quantised a token at a time (CPU; 2-3x quicker products, a little less exact).
        host_tokens: tokens of KV that host memory holds behind the device's; 0 is no such tier.
        write_through: what is copied there before it has to be: ``never``, ``leased`` or ``all``.
        max_batch_tokens: tokens one step computes at most (prefill is cut to fit); 0 is 512 on a
            CPU and 8,192 on a GPU.
        max_sequences: sequences running at a time; 0 is 64 on a CPU and 256 on a GPU.
        lease_budget: largest share of the blocks under lease.
        threads: compute threads on a CPU; one is best for decoding, engines.md §4.4.
        deterministic: log-probabilities are the same bits whatever else is in the batch and however
            the prompt is cut; slower.
    """

    device: str = "cpu"
    dtype: str = "auto"
    weights: str = "dense"
    block_size: int = 16
    kv_tokens: int = 0
    kv_memory: float = 0.85
    host_tokens: int = 0
    write_through: str = "leased"
    max_batch_tokens: int = 0
    max_sequences: int = 0
    lease_budget: float = 0.75
    threads: int = 1
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.max_batch_tokens < 0 or self.max_sequences < 0:
            raise ConfigError(
                "block_size must be positive, max_batch_tokens and max_sequences not negative"
            )
        if not 0 <= self.lease_budget <= 1 or not 0 < self.kv_memory <= 1:
            raise ConfigError("lease_budget and kv_memory are shares between 0 and 1")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype {self.dtype!r}: choose auto, float32 or bfloat16")
        if self.weights not in ("dense", "int8"):
            raise ConfigError(f"weights {self.weights!r}: choose dense or int8")
        if self.write_through not in ("never", "leased", "all"):
            raise ConfigError(f"write_through {self.write_through!r}: never, leased or all")
        if self.weights == "int8" and self.deterministic:
            raise ConfigError("the deterministic mode is for dense weights")
        if self.host_tokens < 0 or self.kv_tokens < 0 or self.threads < 1:
            raise ConfigError("host_tokens and kv_tokens must not be negative, threads at least 1")

    def on(self, device: str) -> "EngineConfig":
        """With the defaults of a kind of device, ``cpu`` or ``cuda``."""
        gpu = device == "cuda"
        return replace(
            self,
            max_batch_tokens=self.max_batch_tokens or (8192 if gpu else 512),
            max_sequences=self.max_sequences or (256 if gpu else 64),
        )

    def blocks(self, bytes_per_token: int, free_bytes: int) -> int:
        """KV blocks for a model of so many KV bytes a token, with so much memory to fill."""
        tokens = self.kv_tokens or free_bytes // bytes_per_token
        return max(2, math.ceil(tokens / self.block_size))

    @property
    def host_blocks(self) -> int:
        return math.ceil(self.host_tokens / self.block_size)


__all__ = ["ARCHITECTURES", "EngineConfig", "ModelConfig", "RopeScaling"]
