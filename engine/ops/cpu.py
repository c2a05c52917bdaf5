"""The operations on a CPU: packed weights, our own loops for what is small, torch for the rest.

Measured reasons (engines.md §4.4): weights packed for oneDNN are 1.5-2.5x quicker than `F.linear`
from a batch of two up, a transposed copy is up to 2x quicker at batch 1 with wide outputs. Where
`native.c` cannot be compiled, torch does all of it, a sequence at a time.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.ops import native
from drawloom.engine.ops.base import BatchMeta, Linear, Stack
from drawloom.engine.ops.reference import ReferenceOps, norm

_SMALL = 2
_WIDE = 1024
_LIGHT = 1 << 17


class _Panels:
    """Weights packed for the products of `native.c`."""

    def __init__(self, library: native.Native, weight: Tensor, bias: Tensor | None) -> None:
        self._native = library
        self.update(weight, bias)

    def update(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias, self.outputs = bias, weight.shape[0]
        self.packed = native.packed(weight)

    def __call__(self, x: Tensor) -> Tensor:
        return self._native.linear(x, self.packed, self.bias, self.outputs)

    def to(self, device: torch.device) -> None:
        assert device.type == "cpu", "weights packed for a CPU stay there"


class _Packed:
    """Weights packed for oneDNN, with a transposed copy for tiny batches of wide outputs and of
    small weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.update(weight, bias)

    def update(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        # streamed from memory, one row: 27 GB/s instead of 16 for 32000 x 512, 21 for 3072 x 512;
        # and a call of oneDNN costs 10 us: 18 us instead of 7 for 256 x 256
        quicker = weight.shape[0] >= max(_WIDE, weight.shape[1]) or weight.numel() <= _LIGHT
        single = weight.dtype is torch.float32
        self.transposed = weight.t().contiguous() if single and quicker else None
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 16)

    def __call__(self, x: Tensor) -> Tensor:
        if self.transposed is not None and x.shape[0] <= _SMALL:
            product = x @ self.transposed
            return product if self.bias is None else product + self.bias
        rows = _padded(x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return y[: x.shape[0]]

    def to(self, device: torch.device) -> None:
        assert device.type == "cpu", "weights packed for a CPU stay there"


@lru_cache
def _root(value: float) -> Tensor:
    return torch.tensor(value**0.5)


def _padded(x: Tensor) -> Tensor:
    """Rows [M, K] with rows of zeros behind them, so that M is one of few.

    oneDNN prepares its kernels anew for every pair of M and weight shape, 0.15 ms and 0.56 MiB
    each, and keeps the last 128 (`drawloom.engine`). Above 16, M is one of 16 an octave: 2 % more
    rows on average.
    """
    count = x.shape[0]
    unit = 1 << max(0, (count - 1).bit_length() - 5)
    return F.pad(x, (0, 0, 0, -count % unit)) if count % unit else x


class _Int8:
    """Weights of one byte, a scale for each output; activations quantised a token at a time.

    The product is unsigned times signed bytes (VNNI), the only pairing that oneDNN has a quick
    kernel for: 65 us against 187 in float32 for 1024 x 512 at batch 16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.dtype = weight.dtype
        self.zeros = torch.zeros(weight.shape[0], dtype=torch.int32)
        self.update(weight, bias)

    def update(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        wide = weight.float()
        self.scales = wide.abs().amax(1).clamp_min(1e-12) / 127
        whole = (wide / self.scales[:, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(whole, [16, weight.shape[1]])

    def __call__(self, x: Tensor) -> Tensor:
        x = x.float()
        scale = x.abs().amax(-1, keepdim=True).clamp_min_(1e-12).div_(127)
        whole = _padded((x / scale).add_(128.5).to(torch.uint8))
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        y = y[: x.shape[0]].mul_(scale).to(self.dtype)
        return y if self.bias is None else y.add_(self.bias)

    def to(self, device: torch.device) -> None:
        assert device.type == "cpu", "weights packed for a CPU stay there"


class CpuOps(ReferenceOps):
    """For a KV store laid out head-major: [kv_heads, slots, d] underneath (see `kv.KVStore`)."""

    def __init__(self, int8: bool = False, compiled: bool = True) -> None:
        self._native = native.load() if compiled else None
        self._packs = torch.backends.mkldnn.is_available()
        self._int8 = int8
        self._turned: BatchMeta | None = None
        self._turn: tuple[Tensor, Tensor] | None = None

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        if self._int8:
            return _Int8(weight, bias)
        if self._native is not None and native.packs(weight):
            return _Panels(self._native, weight, bias)
        return _Packed(weight, bias) if self._packs else super().linear(weight, bias)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self._native is not None and x.dtype in native.DTYPES:
            return self._native.rms_norm(x, weight, eps, residual)
        total = x if residual is None else x + residual
        if total.dtype is not torch.float32:
            return F.rms_norm(total, weight.shape, weight, eps), total
        # five quick calls: F.rms_norm is made of more of them
        length = torch.linalg.vector_norm(total, dim=-1, keepdim=True)
        root = torch.hypot(length.mul_(total.shape[-1] ** -0.5), _root(eps))
        return (total * weight).div_(root), total

    def silu_mul(self, x: Tensor) -> Tensor:
        if self._native is not None and x.dtype in native.DTYPES:
            return self._native.silu_mul(x)
        gate, up = x.chunk(2, -1)
        return F.silu(gate).mul_(up)

    def stack(
        self, linears: list[list[Linear]], norms: list[list[Tensor]], group: int, depth: int
    ) -> Stack | None:
        """Return layers as one call of `native.c`, which saves 50 us a layer."""
        if self._native is None or not norms or not native.fit(group, depth):
            return None
        described = []
        for four, two in zip(linears, norms, strict=True):
            panels = [one for one in four if isinstance(one, _Panels)]
            if len(panels) < len(four):
                return None
            described.append(([(p.packed, p.bias, p.outputs) for p in panels], two))
        library, layers = self._native, native.describe(described)
        kept = described  # what the description points to

        def compute(
            x: Tensor,
            rope: tuple[Tensor, Tensor],
            store: Tensor,
            heads: int,
            eps: float,
            meta: BatchMeta,
        ) -> tuple[Tensor, Tensor]:
            assert kept
            return library.layers(layers, x, rope, store, heads, eps, meta)

        return compute

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
        if self._native is not None and q.dtype in native.DTYPES:
            flat_k, flat_v = _flat(keys), _flat(values)
            return self._native.rope_and_store(q, k, v, rope, flat_k, flat_v, meta)
        if self._turned is not meta or self._turn is None:
            cos, sin = meta.rotation(rope, q.dtype)
            self._turned, self._turn = meta, (torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
        cos, sin = self._turn
        half = q.shape[-1] // 2
        k = (k * cos).addcmul_(k.roll(half, -1), sin)
        self.store(k, v, keys, values, meta)
        return (q * cos).addcmul_(q.roll(half, -1), sin)

    def store(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> None:
        _flat(keys).index_copy_(1, meta.slots, k.transpose(0, 1))
        _flat(values).index_copy_(1, meta.slots, v.transpose(0, 1))

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> Tensor:
        size = keys.shape[1]
        flat_k, flat_v = _flat(keys), _flat(values)
        if self._native is not None and native.fits(q, flat_k):
            return self._native.attention(q, flat_k, flat_v, meta, size)
        out, at = torch.empty_like(q), 0
        for count, context, table in zip(
            meta.query_lengths, meta.contexts, meta.tables, strict=True
        ):
            first = max(0, context - count - meta.window + 1) if meta.window else 0
            runs = _runs(table, first, context, size)
            k, v = _read(flat_k, runs), _read(flat_v, runs)
            mine = q[at : at + count]
            alone = count == 1
            out[at : at + count] = _one(mine, k, v) if alone else _many(mine, k, v, meta.window)
            at += count
        return out


def _flat(cache: Tensor) -> Tensor:
    """[blocks, size, kv_heads, d] as the [kv_heads, slots, d] that it is underneath."""
    return cache.permute(2, 0, 1, 3).flatten(1, 2)


def _runs(table: list[int], first: int, context: int, size: int) -> list[tuple[int, int]]:
    """The slots of tokens `first` to `context` as (start, end), neighbouring blocks merged."""
    runs: list[tuple[int, int]] = []
    start = previous = -2
    for block in table[first // size : -(-context // size)]:
        if block != previous + 1:
            if start >= 0:
                runs.append((start * size, (previous + 1) * size))
            start = block
        previous = block
    end = previous * size + (context - 1) % size + 1
    runs.append((start * size, end))
    begin, end = runs[0]
    runs[0] = (begin + first % size, end)
    return runs


def _read(flat: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    parts = [flat[:, start:end] for start, end in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One new token: the queries of a group share their keys as rows of one product."""
    kv_heads, depth = k.shape[0], k.shape[-1]
    rows = q.view(1, kv_heads, -1, depth)
    return F.scaled_dot_product_attention(rows, k[None], v[None]).reshape(1, -1, depth)


def _many(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    count, heads = q.shape[:2]
    context, group = k.shape[1], heads // k.shape[0]
    k, v = (t.repeat_interleave(group, 0)[None] for t in (k, v))
    rows = q.transpose(0, 1)[None]
    if count == context and (not window or context <= window):
        a = F.scaled_dot_product_attention(rows, k, v, is_causal=True)
    else:
        seen = torch.ones(count, context, dtype=torch.bool).tril(context - count)
        if window:
            seen = seen.triu(context - count - window + 1)
        a = F.scaled_dot_product_attention(rows, k, v, attn_mask=seen)
    return a[0].transpose(0, 1)


__all__ = ["CpuOps"]
