"""Batch-invariant operations: the same bits for any batch and any chunking of a prompt.

The last bits of a product depend on its shape, because another shape means another kernel or order
of sums. So every product here has one shape for every token: tiles of 16 rows, and a context padded
to whole tiles of 64 keys (masked, so that they add exact zeros). After Thinking Machines,
"Defeating Nondeterminism in LLM Inference" (2025).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.kernels.types import BatchMeta
from drawloom.engine.ops.base import Linear
from drawloom.engine.ops.reference import ReferenceOps

_ROWS, _KEYS = 16, 64


class _Tiled:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.update(weight, bias)

    def update(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def to(self, device: torch.device) -> None:
        self.weight = self.weight.to(device)
        self.bias = None if self.bias is None else self.bias.to(device)

    def __call__(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        rows = F.pad(x, (0, 0, 0, -count % _ROWS)).split(_ROWS)
        return torch.cat([F.linear(part, self.weight, self.bias) for part in rows])[:count]


class DeterministicOps(ReferenceOps):
    """Compute the operations batch-invariantly; slower than the others."""

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Keep the weights, for products over tiles of rows."""
        return _Tiled(weight, bias)

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> Tensor:
        """Compute causal attention, one query token at a time."""
        out, at = torch.empty_like(q), 0
        for count, context, table in zip(
            meta.query_lengths, meta.contexts, meta.tables, strict=True
        ):
            blocks = torch.tensor(table, device=q.device).clamp_min(0)
            k = keys[blocks].flatten(0, 1)[:context].float()
            v = values[blocks].flatten(0, 1)[:context].float()
            for index in range(count):
                end = context - count + index + 1
                out[at + index] = _attend_one(q[at + index], k[:end], v[:end], meta.window)
            at += count
        return out


def _attend_one(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Compute attention of one query [heads, d] over [L, kv_heads, d], summed tile by tile."""
    length, kv_heads, depth = k.shape
    group = q.shape[0] // kv_heads
    padding = (0, 0, 0, 0, 0, -length % _KEYS)
    k, v = (F.pad(t, padding).unflatten(0, (-1, _KEYS)).permute(2, 0, 1, 3) for t in (k, v))
    rows = q.float().view(kv_heads, group, depth)
    tiles = k.shape[1]
    scores = torch.stack([rows @ k[:, t].transpose(1, 2) for t in range(tiles)], 1) * depth**-0.5
    place = torch.arange(tiles * _KEYS, device=q.device).view(1, tiles, 1, _KEYS)
    seen = place < length
    if window:
        seen = seen & (place >= length - window)
    scores = scores.masked_fill(~seen, float("-inf"))
    weights = (scores - scores.amax((1, 3), keepdim=True)).exp()
    total = torch.zeros_like(rows)
    mass = torch.zeros(kv_heads, group, 1, device=q.device)
    for tile in range(tiles):
        total += weights[:, tile] @ v[:, tile]
        mass += weights[:, tile].sum(-1, keepdim=True)
    return (total / mass).view(-1, depth).to(q.dtype)


__all__ = ["DeterministicOps"]
