"""Operations in plain torch: slow, exact, on any device; all others are tested against them.

They compute in the type of their input: given float64, they are what a GPU's result is held
against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.kernels.types import (
    BatchMeta,
    DecodeBatch,
    DeviceStep,
    PrefillBatch,
    RopeArgs,
    Stream,
)
from drawloom.engine.ops.base import Linear, Stack


class PlainLinear:
    """Compute a linear layer with the weights as the checkpoint has them."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def update(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replace the weights in place: captured graphs go on reading them."""
        self.weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def to(self, device: torch.device) -> None:
        """Move the weights to a device."""
        self.weight = self.weight.to(device)
        self.bias = None if self.bias is None else self.bias.to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding in halves layout to x [T, heads, d].

    Args:
        cos: [T, 1, d / 2].
        sin: alike.
    """
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute the RMS norm in float32, scaled in the type of `x`, as the model families do."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def attend(
    q: Tensor, keys: Tensor, values: Tensor, table: list[int], context: int, window: int
) -> Tensor:
    """Compute attention of the last tokens of one sequence over its paged cache.

    Args:
        q: [L, heads, d].
        keys: [blocks, block_size, kv_heads, d].
        values: alike.
        table: the blocks of the sequence.
        context: its tokens, the L included.
        window: tokens that a token attends to, itself included; 0 is all.
    """
    count, heads, depth = q.shape
    group = heads // keys.shape[2]
    wide = torch.float64 if q.dtype is torch.float64 else torch.float32
    blocks = torch.tensor(table, device=q.device).clamp_min(0)
    k = keys[blocks].flatten(0, 1)[:context].repeat_interleave(group, 1).to(wide)
    v = values[blocks].flatten(0, 1)[:context].repeat_interleave(group, 1).to(wide)
    scores = torch.einsum("qhd,khd->hqk", q.to(wide), k) * depth**-0.5
    last = torch.arange(context - count, context, device=q.device)
    position = torch.arange(context, device=q.device)[None]
    seen = position <= last[:, None]
    if window:
        seen &= position > last[:, None] - window
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


def decode(q: Tensor, keys: Tensor, values: Tensor, batch: DecodeBatch) -> Tensor:
    """Compute attention of one token a sequence [B, heads, d]; zeros for padding rows."""
    out, size = torch.zeros_like(q), keys.shape[1]
    for row, (slot, context) in enumerate(
        zip(batch.slots.tolist(), batch.contexts.tolist(), strict=True)
    ):
        if context:
            table = batch.tables[slot, : -(-context // size)].tolist()
            out[row] = attend(q[row : row + 1], keys, values, table, context, batch.window)[0]
    return out


def prefill(q: Tensor, keys: Tensor, values: Tensor, batch: PrefillBatch) -> Tensor:
    """Compute attention of chunks of tokens [T, heads, d]; zeros for padding."""
    out, size, starts = torch.zeros_like(q), keys.shape[1], batch.starts.tolist()
    rows = zip(batch.slots.tolist(), batch.contexts.tolist(), starts, starts[1:], strict=False)
    for slot, context, begin, end in rows:
        if context:
            table = batch.tables[slot, : -(-context // size)].tolist()
            out[begin:end] = attend(q[begin:end], keys, values, table, context, batch.window)
    return out


class ReferenceOps:
    """Compute all operations in plain torch."""

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Keep the weights as they are."""
        return PlainLinear(weight, bias)

    def stack(
        self, linears: list[list[Linear]], norms: list[list[Tensor]], group: int, depth: int
    ) -> Stack | None:
        """Return None: each operation is a call of its own."""
        return None

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the RMS norm of ``x + residual`` and that sum."""
        total = x if residual is None else x + residual
        return norm(total, weight, eps), total

    def rope_and_store(self, args: RopeArgs) -> Tensor:
        """Rotate queries and keys, and store keys and values; see `Ops.rope_and_store`."""
        q, k = args.q, args.k
        if args.norms is not None:
            gain_q, gain_k, eps = args.norms
            q, k = norm(q, gain_q, eps), norm(k, gain_k, eps)
        cos, sin = args.meta.rotation(args.rope, q.dtype)
        self.store(rotate(k, cos, sin), args.v, args.keys, args.values, args.meta)
        return rotate(q, cos, sin)

    def store(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> None:
        """Write new keys and values [T, kv_heads, d] to their KV slots."""
        size = keys.shape[1]
        block, offset = meta.kv_slots // size, meta.kv_slots % size
        keys[block, offset] = k
        values[block, offset] = v

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> Tensor:
        """Compute causal attention; see `Ops.attention`."""
        if meta.step is not None:
            return _device_step(q, keys, values, meta.step)
        out, at = torch.empty_like(q), 0
        for count, context, table in zip(
            meta.query_lengths, meta.contexts, meta.tables, strict=True
        ):
            rows = q[at : at + count]
            out[at : at + count] = attend(rows, keys, values, table, context, meta.window)
            at += count
        return out

    def silu_mul(self, x: Tensor) -> Tensor:
        """Return ``silu(a) * b`` of x = [a, b]."""
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    def embed_stream(self, tokens: Tensor, embedding: Tensor, gain: Tensor) -> Stream:
        """Look up embeddings, ready for a norm with `gain`."""
        return new_stream(F.embedding(tokens, embedding), gain)

    def norm_linear(
        self, linear: Linear, stream: Stream, eps: float, gated: bool = False
    ) -> Tensor:
        """Return ``linear(norm(x))``, with `silu_mul` of it if `gated`."""
        mean = stream.squares.sum(0)[: stream.x.shape[0], None] / stream.x.shape[1]
        scaled = stream.scaled if stream.x.dtype is torch.float64 else stream.scaled.float()
        y = linear((scaled * torch.rsqrt(mean + eps)).to(stream.x.dtype))
        return self.silu_mul(y) if gated else y

    def linear_add(self, linear: Linear, x: Tensor, onto: Stream, gain: Tensor) -> Stream:
        """Add ``linear(x)`` to the stream, ready for a norm with `gain`."""
        return new_stream(onto.x + linear(x), gain)


def new_stream(x: Tensor, gain: Tensor) -> Stream:
    """Prepare a residual stream for the norm with `gain` that comes next."""
    wide = x if x.dtype is torch.float64 else x.float()
    return Stream(x, x * gain, wide.square().sum(-1)[None])


def _device_step(q: Tensor, keys: Tensor, values: Tensor, step: DeviceStep) -> Tensor:
    out, count = torch.empty_like(q), step.decoding
    if step.decodes is not None:
        out[:count] = decode(q[:count], keys, values, step.decodes)
    if step.prefills is not None:
        out[count:] = prefill(q[count:], keys, values, step.prefills)
    return out


__all__ = [
    "PlainLinear",
    "ReferenceOps",
    "attend",
    "decode",
    "new_stream",
    "norm",
    "prefill",
    "rotate",
]
