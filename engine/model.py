"""The decoder that Llama, Qwen2 and Qwen3 share, as functions over weights."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.config import ModelConfig
from drawloom.engine.kv import KVStore
from drawloom.engine.ops.base import BatchMeta, Linear, Ops


class Layer:
    """One block: attention, then a gated MLP, each before a norm and after a residual."""

    def __init__(
        self, config: ModelConfig, weights: dict[str, Tensor], index: int, ops: Ops
    ) -> None:
        self.config, self.ops = config, ops
        at = f"model.layers.{index}"

        def packed(parts: list[str]) -> Linear:
            weight = torch.cat([weights[f"{at}.{p}.weight"] for p in parts])
            biases = [weights[n] for p in parts if (n := f"{at}.{p}.bias") in weights]
            return ops.linear(weight, torch.cat(biases) if biases else None)

        self.qkv = packed([f"self_attn.{n}_proj" for n in "qkv"])
        self.output = packed(["self_attn.o_proj"])
        self.gate_up = packed(["mlp.gate_proj", "mlp.up_proj"])
        self.down = packed(["mlp.down_proj"])
        self.input_norm = weights[f"{at}.input_layernorm.weight"]
        self.post_norm = weights[f"{at}.post_attention_layernorm.weight"]
        self.norms = None
        if config.qk_norm:
            q, k = (weights[f"{at}.self_attn.{n}_norm.weight"] for n in "qk")
            self.norms = (q, k, config.rms_eps)

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        rope: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        meta: BatchMeta,
    ) -> tuple[Tensor, Tensor]:
        c, ops = self.config, self.ops
        h, residual = ops.rms_norm(x, self.input_norm, c.rms_eps, residual)
        q, k, v = (
            part.unflatten(-1, (-1, c.head_dim))
            for part in self.qkv(h).split(
                [c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim], -1
            )
        )
        q = ops.rope_and_store(q, k, v, self.norms, rope, *cache, meta)
        x = self.output(ops.attention(q, *cache, meta).flatten(1))
        h, residual = ops.rms_norm(x, self.post_norm, c.rms_eps, residual)
        return self.down(ops.silu_mul(self.gate_up(h))), residual


class Decoder:
    """Token ids in, logits out."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], ops: Ops) -> None:
        self.config, self.ops = config, ops
        self.embedding = weights["model.embed_tokens.weight"]
        self.layers = [Layer(config, weights, i, ops) for i in range(config.layers)]
        self.norm = weights["model.norm.weight"]
        self.head = ops.linear(self.embedding if config.tied else weights["lm_head.weight"], None)
        self.rope = tuple(t.to(self.embedding.device) for t in rope_tables(config))

    def __call__(self, tokens: Tensor, store: KVStore, meta: BatchMeta) -> Tensor:
        """Logits [R, V] of the sampled rows; keys and values of all [T] tokens are stored."""
        x, residual = F.embedding(tokens, self.embedding), None
        for index, layer in enumerate(self.layers):
            x, residual = layer(x, residual, (self.rope[0], self.rope[1]), store.layer(index), meta)
        x, residual = x[meta.rows], None if residual is None else residual[meta.rows]
        x, _ = self.ops.rms_norm(x, self.norm, self.config.rms_eps, residual)
        return self.head(x)


def rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines [max_position, d / 2], float32, with Llama 3.1's scaling if asked."""
    half = config.head_dim // 2
    steps = torch.arange(half, dtype=torch.float32)
    inverse = 1.0 / config.rope_theta ** (steps * 2 / config.head_dim)
    if (scaling := config.rope_scaling) is not None:
        wavelength = 2 * math.pi / inverse
        turns = scaling.original_max_position / wavelength
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        inverse = (1 - smooth) * inverse / scaling.factor + smooth * inverse
    angles = torch.outer(torch.arange(config.max_position, dtype=torch.float32), inverse)
    return angles.cos(), angles.sin()


__all__ = ["Decoder", "rope_tables"]
