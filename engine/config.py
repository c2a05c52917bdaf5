"""Configuration of models (`ModelConfig`, read from Hugging Face) and of engines."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from drawloom.engine.hfconfig import Fields, read_json
from drawloom.errors import CheckpointError, ConfigError

_MAX_LAYERS = 1_000
_MAX_POSITIONS = 1 << 24
_BOUNDS = {
    "block_size": (1, 1 << 16),
    "max_batch_tokens": (0, 1 << 20),
    "max_sequences": (0, 1 << 16),
    "kv_tokens": (0, 1 << 36),
    "host_tokens": (0, 1 << 36),
    "threads": (1, 1 << 10),
}
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Describe Llama 3.1's frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Describe a decoder: pre-norm, rotary positions, grouped-query attention, gated MLP.

    Attributes:
        head_dim: width of an attention head.
        max_position: longest context that the model was made for, in tokens.
        tied: the output layer is the embedding.
        qk_norm: queries and keys are normalised (Qwen3).
        window: tokens that a token attends to, itself included (Mistral); 0 is all.
        dtype: of the checkpoint's weights.
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
        """Read ``config.json`` (and ``generation_config.json``) of a model folder.

        Raises:
            CheckpointError: if this engine cannot run the model, a value is impossible, or a key
                is not understood (see `hfconfig`).
        """
        path = folder / "config.json"
        config = Fields(str(path), read_json(path))
        generation = folder / "generation_config.json"
        extra = Fields(str(generation), read_json(generation) if generation.exists() else {})
        if (adapter := folder / "adapter_config.json").exists():
            raise CheckpointError(
                f"{adapter}: adapters are not supported: merge it into the model's weights"
            )
        return cls._read(config, extra)

    @classmethod
    def _read(cls, c: Fields, extra: Fields) -> "ModelConfig":
        family = _family(c)
        c.refuse_unknown(family)
        layers = c.whole("num_hidden_layers", high=_MAX_LAYERS)
        heads, hidden = c.whole("num_attention_heads", high=1 << 16), c.whole("hidden_size")
        # the defaults of transformers for a missing key
        default = heads if c.has("num_key_value_heads") else _KV_HEADS.get(family, heads)
        kv_heads = c.whole("num_key_value_heads", default)
        head_dim = c.whole("head_dim", 128 if family == "qwen3" else max(1, hidden // heads))
        if heads % kv_heads:
            raise c.wrong("num_key_value_heads", f"a divisor of the {heads} attention heads")
        if head_dim % 2:
            raise CheckpointError(
                f"{c.where}: heads of {head_dim} cannot be rotated: an odd number"
            )
        bias = c.flag("attention_bias")
        eos = c.ids("eos_token_id") + extra.ids("eos_token_id")
        if not eos and not c.has("eos_token_id") and family in ("llama", "mistral"):
            eos = (2,)
        max_position = c.whole("max_position_embeddings", high=_MAX_POSITIONS)
        rope, kind = c.rope()
        return cls(
            family=family,
            vocab_size=c.whole("vocab_size"),
            hidden_size=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=c.whole("intermediate_size"),
            max_position=max_position,
            rope_theta=rope.positive("rope_theta", c.positive("rope_theta", 10000.0)),
            rope_scaling=_scaling(c, rope, max_position) if kind == "llama3" else None,
            rms_eps=c.positive("rms_norm_eps", 1e-6),
            tied=c.flag("tie_word_embeddings"),
            qkv_bias=True if family == "qwen2" else bias,
            output_bias=bias and family != "qwen2",
            mlp_bias=c.flag("mlp_bias"),
            qk_norm=family == "qwen3",
            window=_window(c, family),
            eos_ids=tuple(dict.fromkeys(eos)),
            dtype=_dtype(c),
        )


def _family(c: Fields) -> str:
    names = c.texts("architectures")
    family = next((ARCHITECTURES[n] for n in names if n in ARCHITECTURES), None)
    if family is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(
            f"{c.where}: architecture {names} is not supported; known are: {known}"
        )
    if c.text("model_type", family) != family:
        raise c.wrong("model_type", f"{family!r} for the architecture {names}")
    return family


def _window(c: Fields, family: str) -> int:
    """Return the sliding window, which must be the same for all layers; 0 is none."""
    if c.flag("use_sliding_window"):
        raise CheckpointError(
            f"{c.where}: use_sliding_window mixes full and sliding layers, which this engine "
            "cannot do; set it to false to run the model with full attention"
        )
    slides = family == "mistral"
    missing = 4096 if slides and not c.has("sliding_window") else 0
    window = c.whole("sliding_window", missing, low=0)
    if family == "llama" and window:
        raise c.wrong("sliding_window", "null: llama models have none")
    kind = "sliding_attention" if slides and window else "full_attention"
    if set(c.texts("layer_types")) - {kind}:
        raise c.wrong("layer_types", f"{kind} for every layer: this engine cannot mix them")
    return window if slides else 0


def _scaling(c: Fields, rope: Fields, max_position: int) -> RopeScaling:
    trained = rope.whole("original_max_position_embeddings", max_position)
    scaling = RopeScaling(
        rope.positive("factor"),
        rope.positive("low_freq_factor"),
        rope.positive("high_freq_factor"),
        c.whole("original_max_position_embeddings", trained),
    )
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        raise rope.wrong("high_freq_factor", "above low_freq_factor")
    return scaling


def _dtype(c: Fields) -> str:
    dtype = c.text("dtype", c.text("torch_dtype", "float32")).removeprefix("torch.")
    if dtype not in ("float32", "bfloat16", "float16", "float64", "auto"):
        key = "dtype" if c.has("dtype") else "torch_dtype"
        raise c.wrong(key, "bfloat16, float16 or float32: quantised weights cannot be read")
    return dtype


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Configure an engine.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32``, ``bfloat16`` or ``auto`` (float32 on a CPU, the checkpoint's on a GPU).
        block_size: tokens a KV block.
        kv_tokens: tokens that the KV cache holds, rounded up to blocks; 0 takes what fits
            (`kv_memory` of the free GPU memory, or 1 GiB on a CPU).
        kv_memory: share of the free GPU memory for the KV cache.
        weights: ``dense``, or ``int8``: one byte a weight with a scale for each output, activations
            quantised a token at a time (CPU; products 2-3 times as fast, a little less exact).
        host_tokens: tokens of KV that host memory holds behind the device's; 0 is no such tier.
        max_batch_tokens: most tokens of one step, to which prefill is cut; 0 is 512 on a CPU and
            8,192 on a GPU.
        max_sequences: most sequences that run at a time; 0 is 64 on a CPU and 256 on a GPU.
        lease_budget: largest share of the blocks under lease.
        threads: compute threads on a CPU; one is best for decoding.
        deterministic: log-probabilities are the same bits, whatever else is in the batch and
            however the prompt is cut into chunks; slower.

    Raises:
        ConfigError: if a value is out of its range, or two exclude each other.
    """

    device: str = "cpu"
    dtype: str = "auto"
    weights: str = "dense"
    block_size: int = 16
    kv_tokens: int = 0
    kv_memory: float = 0.85
    host_tokens: int = 0
    max_batch_tokens: int = 0
    max_sequences: int = 0
    lease_budget: float = 0.75
    threads: int = 1
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise ConfigError(f"{name}={value}: choose a number from {low} to {high}")
        if not 0 <= self.lease_budget <= 1 or not 0 < self.kv_memory <= 1:
            raise ConfigError("lease_budget and kv_memory are shares between 0 and 1")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype {self.dtype!r}: choose auto, float32 or bfloat16")
        if self.weights not in ("dense", "int8"):
            raise ConfigError(f"weights {self.weights!r}: choose dense or int8")
        if self.weights == "int8" and self.deterministic:
            raise ConfigError("the deterministic mode is for dense weights")

    def on(self, device: str) -> "EngineConfig":
        """Return a copy with the defaults of a kind of device, ``cpu`` or ``cuda``."""
        gpu = device == "cuda"
        return replace(
            self,
            max_batch_tokens=self.max_batch_tokens or (8192 if gpu else 512),
            max_sequences=self.max_sequences or (256 if gpu else 64),
        )

    def blocks(self, bytes_per_token: int, free_bytes: int) -> int:
        """Return the number of KV blocks.

        Args:
            bytes_per_token: KV bytes of a token.
            free_bytes: memory to fill, if `kv_tokens` is 0.
        """
        tokens = self.kv_tokens or free_bytes // bytes_per_token
        return max(2, math.ceil(tokens / self.block_size))

    @property
    def host_blocks(self) -> int:
        """Return the number of KV blocks in host memory."""
        return math.ceil(self.host_tokens / self.block_size)


__all__ = ["ARCHITECTURES", "EngineConfig", "ModelConfig", "RopeScaling"]
