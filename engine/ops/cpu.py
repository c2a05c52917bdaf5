"""Operations on a CPU: packed weights, compiled loops for small operations, torch for the rest.

Weights packed for oneDNN were measured to be 1.5-2.5x faster than `F.linear` from a batch of two
up, and a transposed copy up to 2x faster at batch 1 with wide outputs. Where `native.c` cannot be
compiled, torch computes everything, one sequence at a time.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.kernels.types import BatchMeta, RopeArgs
from drawloom.engine.ops import native
from drawloom.engine.ops.base import Linear, Stack
from drawloom.engine.ops.reference import ReferenceOps, norm

_SMALL = 2  # rows up to which the transposed copy is faster
_WIDE = 1024  # outputs from which it is
_LIGHT = 1 << 17  # or weights up to which it is, whatever the outputs


class _Panels:
    """Compute a linear layer with weights packed for the products of `native.c`."""

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
    """Compute a linear layer with weights packed for oneDNN.

    A transposed copy serves tiny batches, where the outputs are wide or the weights few.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.update(weight, bias)

    def update(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        # from memory, one row: 27 GB/s instead of 16 for 32000 x 512, 21 for 3072 x 512; and a call
        # of oneDNN costs 10 us: 18 us instead of 7 for 256 x 256
        faster = weight.shape[0] >= max(_WIDE, weight.shape[1]) or weight.numel() <= _LIGHT
        single = weight.dtype is torch.float32
        self.transposed = weight.t().contiguous() if single and faster else None
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
    """Append rows of zeros to [M, K], so that M takes few values.

    oneDNN compiles a kernel for every pair of M and weight shape, 0.15 ms and 0.56 MiB each, and
    caches the last 128 (`drawloom.engine`). Above 16, M takes 16 values an octave, which costs 2 %
    more rows on average.
    """
    count = x.shape[0]
    unit = 1 << max(0, (count - 1).bit_length() - 5)
    return F.pad(x, (0, 0, 0, -count % unit)) if count % unit else x


class _Int8:
    """Compute a linear layer in int8: one scale an output, one a token for the activations.

    The product is unsigned times signed bytes (VNNI), the only pairing with a fast kernel in
    oneDNN: 65 us against 187 in float32 for 1024 x 512 at batch 16.
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
            qx=whole,
            x_scale=1.0,
            x_zero_point=128,
            qw=self.packed,
            w_scale=self.scales,
            w_zero_point=self.zeros,
            bias=None,
            output_scale=1.0,
            output_zero_point=0,
            output_dtype=torch.float32,
            post_op_name="none",
            post_op_args=[],
            post_op_algorithm="",
        )
        y = y[: x.shape[0]].mul_(scale).to(self.dtype)
        return y if self.bias is None else y.add_(self.bias)

    def to(self, device: torch.device) -> None:
        assert device.type == "cpu", "weights packed for a CPU stay there"


class CpuOps(ReferenceOps):
    """Compute the operations over a KV store laid out head-major (see `KVStore`).

    Args:
        int8: quantise the weights to one byte.
        compiled: use `native.c` if it can be compiled.
    """

    def __init__(self, int8: bool = False, compiled: bool = True) -> None:
        self._native = native.load() if compiled else None
        self._packs = torch.backends.mkldnn.is_available()
        self._int8 = int8
        self._rotated: BatchMeta | None = None
        self._rotation: tuple[Tensor, Tensor] | None = None

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Pack weights in the form that is fastest here."""
        if self._int8:
            return _Int8(weight, bias)
        if self._native is not None and native.packs(weight):
            return _Panels(self._native, weight, bias)
        return _Packed(weight, bias) if self._packs else super().linear(weight, bias)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the RMS norm of ``x + residual`` and that sum."""
        if self._native is not None and x.dtype in native.DTYPES:
            return self._native.rms_norm(x, weight, eps, residual)
        total = x if residual is None else x + residual
        if total.dtype is not torch.float32:
            return F.rms_norm(total, weight.shape, weight, eps), total
        # five cheap calls: F.rms_norm consists of more
        length = torch.linalg.vector_norm(total, dim=-1, keepdim=True)
        root = torch.hypot(length.mul_(total.shape[-1] ** -0.5), _root(eps))
        return (total * weight).div_(root), total

    def silu_mul(self, x: Tensor) -> Tensor:
        """Return ``silu(a) * b`` of x = [a, b]."""
        if self._native is not None and x.dtype in native.DTYPES:
            return self._native.silu_mul(x)
        gate, up = x.chunk(2, -1)
        return F.silu(gate).mul_(up)

    def stack(
        self, linears: list[list[Linear]], norms: list[list[Tensor]], group: int, depth: int
    ) -> Stack | None:
        """Fuse layers into one call of `native.c`, which saves 50 us a layer."""
        if self._native is None or not norms or not native.supports_heads(group, depth):
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
            return library.layers(layers, x, rope, store, heads=heads, eps=eps, meta=meta)

        return compute

    def rope_and_store(self, args: RopeArgs) -> Tensor:
        """Rotate queries and keys, and store keys and values; see `Ops.rope_and_store`."""
        q, k, v, keys, values, meta = args.q, args.k, args.v, args.keys, args.values, args.meta
        if args.norms is not None:
            gain_q, gain_k, eps = args.norms
            q, k = norm(q, gain_q, eps), norm(k, gain_k, eps)
        if self._native is not None and q.dtype in native.DTYPES:
            flat_k, flat_v = _flat(keys), _flat(values)
            return self._native.rope_and_store(
                RopeArgs(q, k, v, None, args.rope, keys=flat_k, values=flat_v, meta=meta)
            )
        if self._rotated is not meta or self._rotation is None:
            cos, sin = meta.rotation(args.rope, q.dtype)
            self._rotated = meta
            self._rotation = (torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
        cos, sin = self._rotation
        half = q.shape[-1] // 2
        k = (k * cos).addcmul_(k.roll(half, -1), sin)
        self.store(k, v, keys, values, meta)
        return (q * cos).addcmul_(q.roll(half, -1), sin)

    def store(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> None:
        """Write new keys and values [T, kv_heads, d] to their KV slots."""
        _flat(keys).index_copy_(1, meta.kv_slots, k.transpose(0, 1))
        _flat(values).index_copy_(1, meta.kv_slots, v.transpose(0, 1))

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> Tensor:
        """Compute causal attention; see `Ops.attention`."""
        size = keys.shape[1]
        flat_k, flat_v = _flat(keys), _flat(values)
        if self._native is not None and native.supports(q, flat_k):
            return self._native.attention(q, flat_k, flat_v, meta, size)
        out, at = torch.empty_like(q), 0
        for count, context, table in zip(
            meta.query_lengths, meta.contexts, meta.tables, strict=True
        ):
            first = max(0, context - count - meta.window + 1) if meta.window else 0
            runs = _runs(table, first, context, size)
            k, v = _read(flat_k, runs), _read(flat_v, runs)
            rows = q[at : at + count]
            out[at : at + count] = (
                _attend_one(rows, k, v) if count == 1 else _attend_many(rows, k, v, meta.window)
            )
            at += count
        return out


def _flat(cache: Tensor) -> Tensor:
    """View a cache [blocks, size, kv_heads, d] in its memory order, [kv_heads, slots, d]."""
    return cache.permute(2, 0, 1, 3).flatten(1, 2)


def _runs(table: list[int], first: int, context: int, size: int) -> list[tuple[int, int]]:
    """Return the KV slots of tokens `first` to `context` as merged (start, end) pairs."""
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


def _attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention of one token; a group's queries are the rows of one product."""
    kv_heads, depth = k.shape[0], k.shape[-1]
    rows = q.view(1, kv_heads, -1, depth)
    return F.scaled_dot_product_attention(rows, k[None], v[None]).reshape(1, -1, depth)


def _attend_many(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
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
