"""Decoder that Llama, Mistral, Qwen2 and Qwen3 share, as functions over weights."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.config import ModelConfig
from drawloom.engine.kernels.types import BatchMeta, RopeArgs, Stream
from drawloom.engine.kvcache.kv_memory import KVStore
from drawloom.engine.models.checkpoint import shapes
from drawloom.engine.ops.base import Linear, Ops, Stack
from drawloom.errors import ConfigError

_QKV = [f"self_attn.{n}_proj" for n in "qkv"]
_OUTPUT = ["self_attn.o_proj"]
_GATE_UP = ["mlp.gate_proj", "mlp.up_proj"]
_DOWN = ["mlp.down_proj"]


class Layer:
    """Compute one layer: attention and a gated MLP, each after a norm, added to a residual."""

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        index: int,
        ops: Ops,
        device: torch.device,
    ) -> None:
        self.config, self.ops, self.at = config, ops, f"model.layers.{index}"
        self._device = device

        def packed(parts: list[str]) -> Linear:
            return ops.linear(*self._joined(weights, parts))

        self.qkv, self.output = packed(_QKV), packed(_OUTPUT)
        self.gate_up, self.down = packed(_GATE_UP), packed(_DOWN)
        self._norms(weights)

    def _joined(self, weights: dict[str, Tensor], parts: list[str]) -> tuple[Tensor, Tensor | None]:
        weight = torch.cat([weights.pop(f"{self.at}.{p}.weight") for p in parts]).to(self._device)
        biases = [weights.pop(n) for p in parts if (n := f"{self.at}.{p}.bias") in weights]
        return weight, torch.cat(biases).to(self._device) if biases else None

    def _norm(self, weights: dict[str, Tensor], name: str) -> Tensor:
        return weights.pop(f"{self.at}.{name}.weight").to(self._device)

    def _norms(self, weights: dict[str, Tensor]) -> None:
        self.input_norm = self._norm(weights, "input_layernorm")
        self.post_norm = self._norm(weights, "post_attention_layernorm")
        self.norms = None
        if self.config.qk_norm:
            q, k = (self._norm(weights, f"self_attn.{n}_norm") for n in "qk")
            self.norms = (q, k, self.config.rms_eps)

    def update(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights, taking them out of their dict."""
        for linear, parts in (
            (self.qkv, _QKV),
            (self.output, _OUTPUT),
            (self.gate_up, _GATE_UP),
            (self.down, _DOWN),
        ):
            linear.update(*self._joined(weights, parts))
        self._norms(weights)

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        rope: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        meta: BatchMeta,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        """Compute a step.

        Args:
            x: [T, H], the output of the layer before.
            residual: [T, H], to which `x` is to be added; None for the first layer.
            rope: cosines and sines [P, d / 2] by position.
            cache: keys and values of this layer, [blocks, block_size, kv_heads, d], written.
            meta: positions of the T tokens.
            last: this is the last layer: keep only the rows in `meta.rows`. All keys and values
                are stored by then, and the other hidden states are not needed.

        Returns:
            The layer's output and the residual that it is to be added to, [T, H] or [R, H].
        """
        c, ops = self.config, self.ops
        h, residual = ops.rms_norm(x, self.input_norm, c.rms_eps, residual)
        x = self._attention(self.qkv(h), rope, cache, meta)
        if last and not meta.every:
            x, residual = x[meta.rows], residual[meta.rows]
        x = self.output(x)
        h, residual = ops.rms_norm(x, self.post_norm, c.rms_eps, residual)
        return self.down(ops.silu_mul(self.gate_up(h))), residual

    def _attention(
        self,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        meta: BatchMeta,
    ) -> Tensor:
        c = self.config
        inner, kv_inner = c.heads * c.head_dim, c.kv_heads * c.head_dim
        q, k, v = (
            part.unflatten(-1, (-1, c.head_dim))
            for part in qkv.split([inner, kv_inner, kv_inner], -1)
        )
        q = self.ops.rope_and_store(RopeArgs(q, k, v, self.norms, rope, *cache, meta))
        return self.ops.attention(q, *cache, meta).flatten(1)

    def forward_small(
        self,
        stream: Stream,
        rope: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        meta: BatchMeta,
        after: Tensor,
    ) -> Stream:
        """Compute a step of a small batch, with norms, gate and residuals in the products.

        It takes 6 kernels instead of 9.

        Args:
            after: [H], gain of the norm behind this layer.
        """
        eps, ops = self.config.rms_eps, self.ops
        qkv = ops.norm_linear(self.qkv, stream, eps)
        x = self._attention(qkv, rope, cache, meta)
        stream = ops.linear_add(self.output, x, stream, self.post_norm)
        h = ops.norm_linear(self.gate_up, stream, eps, gated=True)
        return ops.linear_add(self.down, h, stream, after)


class Decoder:
    """Compute hidden states and logits of token ids.

    Args:
        weights: by Hugging Face name. Each is taken out of the dict and moved to `device` in turn:
            packing copies it, and the original must not be kept alive meanwhile.
        device: that of the weights by default.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        ops: Ops,
        device: torch.device | None = None,
    ) -> None:
        self.config, self.ops = config, ops
        self._device = device or weights["model.norm.weight"].device
        layers = range(config.layers)
        self.layers = [Layer(config, weights, i, ops, self._device) for i in layers]
        self.head = ops.linear(self._take(weights), None)
        self.rope = tuple(t.to(self._device) for t in rope_tables(config))
        self._stack = self._stacked()

    def _stacked(self) -> Stack | None:
        """Fuse all layers but the last, which returns fewer rows, into one call."""
        if self.config.qk_norm:
            return None
        layers = self.layers[:-1]
        return self.ops.stack(
            [[one.qkv, one.output, one.gate_up, one.down] for one in layers],
            [[one.input_norm, one.post_norm] for one in layers],
            self.config.heads // self.config.kv_heads,
            self.config.head_dim,
        )

    def _take(self, weights: dict[str, Tensor]) -> Tensor:
        """Keep the weights that are used as they are, and return the head's."""
        self.embedding = weights.pop("model.embed_tokens.weight").to(self._device)
        self.norm = weights.pop("model.norm.weight").to(self._device)
        return (
            self.embedding if self.config.tied else weights.pop("lm_head.weight").to(self._device)
        )

    def update(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights.

        Raises:
            ConfigError: a weight is missing or of another shape; nothing has changed then.
        """
        wanted = shapes(self.config)
        for name, shape in wanted.items():
            found = weights.get(name)
            if found is None or tuple(found.shape) != shape:
                here = "missing" if found is None else f"{tuple(found.shape)}"
                raise ConfigError(f"new weights: {name} is {here}; this model has {shape}")
        own, device = self.embedding.dtype, self.embedding.device
        weights = {name: weights[name].to(device, own) for name in wanted}
        for layer in self.layers:
            layer.update(weights)
        self.head.update(self._take(weights), None)
        self._stack = self._stacked()

    def to(self, device: torch.device) -> None:
        """Move all weights to a device."""
        self.embedding, self.norm = self.embedding.to(device), self.norm.to(device)
        self.rope = tuple(t.to(device) for t in self.rope)
        for layer in self.layers:
            layer.input_norm, layer.post_norm = (
                layer.input_norm.to(device),
                layer.post_norm.to(device),
            )
            if layer.norms is not None:
                q, k, eps = layer.norms
                layer.norms = (q.to(device), k.to(device), eps)
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
                linear.to(device)
        self.head.to(device)

    def __call__(self, tokens: Tensor, store: KVStore, meta: BatchMeta) -> Tensor:
        """Compute a step: store keys and values of all T tokens, return hidden states [R, H].

        Args:
            tokens: [T] ids.
            store: keys and values of all layers.
            meta: positions of the tokens, and the rows that are returned.
        """
        x: Tensor = F.embedding(tokens, self.embedding)
        residual: Tensor | None = None
        rope, end = (self.rope[0], self.rope[1]), len(self.layers) - 1
        c, begin = self.config, 0
        if self._stack is not None:
            x, residual = self._stack(x, rope, store.tensor, c.heads, c.rms_eps, meta)
            begin = end
        for index, layer in enumerate(self.layers[begin:], begin):
            x, residual = layer(x, residual, rope, store.layer(index), meta, index == end)
        x, _ = self.ops.rms_norm(x, self.norm, self.config.rms_eps, residual)
        return x

    def forward_small(self, tokens: Tensor, store: KVStore, meta: BatchMeta) -> Tensor:
        """Compute a step of a small batch with fused products; return all rows."""
        rope, norms = (self.rope[0], self.rope[1]), [one.input_norm for one in self.layers]
        stream = self.ops.embed_stream(tokens, self.embedding, norms[0])
        for index, (layer, after) in enumerate(
            zip(self.layers, [*norms[1:], self.norm], strict=True)
        ):
            stream = layer.forward_small(stream, rope, store.layer(index), meta, after)
        x, _ = self.ops.rms_norm(stream.x, self.norm, self.config.rms_eps, None)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits [R, V] of hidden states [R, H]."""
        return self.head(hidden)


def rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines [max_position, d / 2], float32, with Llama 3.1's scaling."""
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
