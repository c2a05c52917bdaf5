"""The operations in plain torch: slow, exact, on any device. What the others are tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.ops.base import BatchMeta, Linear


class _Linear:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def update(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight.copy_(weight)  # in place: captured graphs go on reading it
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def to(self, device: torch.device) -> None:
        self.weight = self.weight.to(device)
        self.bias = None if self.bias is None else self.bias.to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves layout. `x` [T, heads, d], `cos` and `sin` [T, 1, d / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm in float32, scaled in the type of `x`, as the families' own code does it."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


class ReferenceOps:
    """Plain torch."""

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return _Linear(weight, bias)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        return norm(total, weight, eps), total

    def rope_and_store(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        norms: tuple[Tensor, Tensor, float] | None,
        rope: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        meta: BatchMeta,
    ) -> Tensor:
        if norms is not None:
            q, k = norm(q, norms[0], norms[2]), norm(k, norms[1], norms[2])
        cos, sin = meta.rotation(rope, q.dtype)
        self.store(rotate(k, cos, sin), v, keys, values, meta)
        return rotate(q, cos, sin)

    def store(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> None:
        size = keys.shape[1]
        block, offset = meta.slots // size, meta.slots % size
        keys[block, offset] = k
        values[block, offset] = v

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> Tensor:
        out, at = torch.empty_like(q), 0
        group = q.shape[1] // keys.shape[2]
        for count, context, table in zip(
            meta.query_lengths, meta.contexts, meta.tables, strict=True
        ):
            blocks = torch.tensor(table, device=q.device).clamp_min(0)
            k = keys[blocks].flatten(0, 1)[:context].repeat_interleave(group, 1).float()
            v = values[blocks].flatten(0, 1)[:context].repeat_interleave(group, 1).float()
            scores = torch.einsum("qhd,khd->hqk", q[at : at + count].float(), k)
            scores *= q.shape[-1] ** -0.5
            last = torch.arange(context - count, context, device=q.device)
            place = torch.arange(context, device=q.device)[None]
            seen = place <= last[:, None]
            if meta.window:
                seen &= place > last[:, None] - meta.window
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            out[at : at + count] = torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
            at += count
        return out

    def silu_mul(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up


__all__ = ["ReferenceOps", "norm", "rotate"]
