"""The least that a batch of equal prompts needs: a hand-written loop over one static KV cache.

No scheduler, no paging, no sampling but argmax: what an engine adds is its distance to this.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.config import ModelConfig
from drawloom.engine.models.decoder import rope_tables
from drawloom.engine.ops.base import Linear
from drawloom.engine.ops.cpu import CpuOps
from drawloom.engine.ops.reference import rotate


class Lean:
    """Run a Llama on one CPU thread, for batches of prompts of one length."""

    def __init__(self, spec: ModelConfig, weights: dict[str, Tensor], most: int) -> None:
        self.spec, self.weights, ops = spec, weights, CpuOps()
        self.most = most

        def pack(at: str, names: list[str]) -> Linear:
            return ops.linear(torch.cat([weights[f"{at}.{n}.weight"] for n in names]), None)

        self.layers = []
        for index in range(spec.layers):
            at = f"model.layers.{index}"
            self.layers.append(
                (
                    pack(at, [f"self_attn.{n}_proj" for n in "qkv"]),
                    pack(at, ["self_attn.o_proj"]),
                    pack(at, ["mlp.gate_proj", "mlp.up_proj"]),
                    pack(at, ["mlp.down_proj"]),
                    weights[f"{at}.input_layernorm.weight"],
                    weights[f"{at}.post_attention_layernorm.weight"],
                )
            )
        self.head = ops.linear(weights["lm_head.weight"], None)
        self.cos, self.sin = rope_tables(spec)

    @torch.inference_mode()
    def generate(self, tokens: Tensor, count: int) -> Tensor:
        """Return greedy tokens: [batch, length] to [batch, count]."""
        spec, batch = self.spec, tokens.shape[0]
        dtype = self.head(torch.zeros(1, spec.hidden_size, dtype=self._dtype())).dtype
        shape = (spec.layers, 2, batch, spec.kv_heads, tokens.shape[1] + count, spec.head_dim)
        cache, said, at = torch.zeros(shape, dtype=dtype), [], 0
        for _ in range(count):
            logits = self._step(tokens, cache, at)
            at += tokens.shape[1]
            tokens = logits.argmax(-1)[:, None]
            said.append(tokens)
        return torch.cat(said, 1)

    def _dtype(self) -> torch.dtype:
        return self.weights["model.norm.weight"].dtype

    def _step(self, tokens: Tensor, cache: Tensor, at: int) -> Tensor:
        spec, (batch, length) = self.spec, tokens.shape
        x = F.embedding(tokens.flatten(), self.weights["model.embed_tokens.weight"])
        place = torch.arange(at, at + length).repeat(batch)
        cos, sin = (t[place].unsqueeze(1).to(x.dtype) for t in (self.cos, self.sin))
        widths = [n * spec.head_dim for n in (spec.heads, spec.kv_heads, spec.kv_heads)]
        for index, (qkv, out, gate_up, down, first, second) in enumerate(self.layers):
            h = F.rms_norm(x, first.shape, first, spec.rms_eps)
            q, k, v = (t.unflatten(-1, (-1, spec.head_dim)) for t in qkv(h).split(widths, -1))
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            keys, values = cache[index]
            keys[:, :, at : at + length] = k.unflatten(0, (batch, length)).transpose(1, 2)
            values[:, :, at : at + length] = v.unflatten(0, (batch, length)).transpose(1, 2)
            x = x + out(self._attend(q, keys, values, at, length))
            h = F.rms_norm(x, second.shape, second, spec.rms_eps)
            gate, up = gate_up(h).chunk(2, -1)
            x = x + down(F.silu(gate).mul_(up))
        x = x.unflatten(0, (batch, length))[:, -1]
        norm = self.weights["model.norm.weight"]
        return self.head(F.rms_norm(x, norm.shape, norm, spec.rms_eps))

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, at: int, length: int) -> Tensor:
        spec, end = self.spec, at + length
        batch, group = keys.shape[0], spec.heads // spec.kv_heads
        keys, values = keys[:, :, :end], values[:, :, :end]
        if length == 1:
            rows = q.view(batch, spec.kv_heads, group, spec.head_dim)
            return F.scaled_dot_product_attention(rows, keys, values).reshape(batch, -1)
        rows = q.unflatten(0, (batch, length)).transpose(1, 2)
        keys, values = (t.repeat_interleave(group, 1) for t in (keys, values))
        a = F.scaled_dot_product_attention(rows, keys, values, is_causal=True)
        return a.transpose(1, 2).reshape(batch * length, -1)


__all__ = ["Lean"]
