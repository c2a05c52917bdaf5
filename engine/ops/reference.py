"""The operations in plain torch: slow, exact, on any device. What the others are tested against."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.ops.base import BatchMeta, Linear, Stack, Stream

if TYPE_CHECKING:
    from drawloom.engine.ops.step import Step


class PlainLinear:
    """As the checkpoint has it."""

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


def attend(
    q: Tensor, keys: Tensor, values: Tensor, table: list[int], context: int, window: int
) -> Tensor:
    """The last tokens of one sequence: `q` [L, heads, d] over blocks of a paged cache."""
    count, heads, depth = q.shape
    group = heads // keys.shape[2]
    wide = torch.float64 if q.dtype is torch.float64 else torch.float32
    blocks = torch.tensor(table, device=q.device).clamp_min(0)
    k = keys[blocks].flatten(0, 1)[:context].repeat_interleave(group, 1).to(wide)
    v = values[blocks].flatten(0, 1)[:context].repeat_interleave(group, 1).to(wide)
    scores = torch.einsum("qhd,khd->hqk", q.to(wide), k) * depth**-0.5
    last = torch.arange(context - count, context, device=q.device)
    place = torch.arange(context, device=q.device)[None]
    seen = place <= last[:, None]
    if window:
        seen &= place > last[:, None] - window
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


class ReferenceOps:
    """Plain torch."""

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return PlainLinear(weight, bias)

    def stack(
        self, linears: list[list[Linear]], norms: list[list[Tensor]], group: int, depth: int
    ) -> Stack | None:
        return None

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
        if meta.step is not None:
            return _stepped(q, keys, values, meta.step)
        out, at = torch.empty_like(q), 0
        for count, context, table in zip(
            meta.query_lengths, meta.contexts, meta.tables, strict=True
        ):
            rows = q[at : at + count]
            out[at : at + count] = attend(rows, keys, values, table, context, meta.window)
            at += count
        return out

    def silu_mul(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    def enter(self, tokens: Tensor, embedding: Tensor, gain: Tensor) -> Stream:
        return ready(F.embedding(tokens, embedding), gain)

    def normed(self, linear: Linear, stream: Stream, eps: float, gated: bool = False) -> Tensor:
        mean = stream.squares.sum(0)[: stream.x.shape[0], None] / stream.x.shape[1]
        y = linear((stream.scaled.float() * torch.rsqrt(mean + eps)).to(stream.x.dtype))
        return self.silu_mul(y) if gated else y

    def added(self, linear: Linear, x: Tensor, onto: Stream, gain: Tensor) -> Stream:
        return ready(onto.x + linear(x), gain)


def ready(x: Tensor, gain: Tensor) -> Stream:
    """A stream, for the norm with `gain` that comes next."""
    wide = x if x.dtype is torch.float64 else x.float()
    return Stream(x, x * gain, wide.square().sum(-1)[None])


def _stepped(q: Tensor, keys: Tensor, values: Tensor, step: "Step") -> Tensor:
    from drawloom.engine.kernels import reference as kernels  # needs triton, which a CPU may lack

    out, count = torch.empty_like(q), step.decoding
    if step.decodes is not None:
        assert step.parts is not None
        kernels.decode(q[:count], keys, values, step.decodes, step.parts, out[:count])
    if step.prefills is not None:
        kernels.prefill(q[count:], keys, values, step.prefills, step.size, out[count:])
    return out


__all__ = ["PlainLinear", "ReferenceOps", "norm", "ready", "rotate"]
