"""Operations on a GPU: Triton kernels, and cuBLAS for large products."""

import torch
from torch import Tensor

from drawloom.engine.kernels import prefill as prefilling
from drawloom.engine.kernels import skinny_gemm
from drawloom.engine.kernels.cascade import cascade
from drawloom.engine.kernels.decode import decode, spare_parts, split_keys
from drawloom.engine.kernels.prefill import prefill
from drawloom.engine.kernels.rmsnorm import rms_norm
from drawloom.engine.kernels.rope import rope_and_store
from drawloom.engine.kernels.silu_mul import silu_mul
from drawloom.engine.kernels.types import (
    BatchMeta,
    DecodeBatch,
    DeviceStep,
    KeyParts,
    PrefillBatch,
    RopeArgs,
    Stream,
)
from drawloom.engine.ops.base import Linear
from drawloom.engine.ops.reference import PlainLinear, ReferenceOps


class TritonOps(ReferenceOps):
    """Compute what the reference computes, with kernels."""

    def __init__(self) -> None:
        self._shared_scratch: skinny_gemm.Scratch | None = None

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the RMS norm of ``x + residual`` and that sum."""
        out: tuple[Tensor, Tensor] = rms_norm(x, weight, eps, residual)
        return out

    def rope_and_store(self, args: RopeArgs) -> Tensor:
        """Rotate queries and keys, and store keys and values; see `Ops.rope_and_store`."""
        return rope_and_store(args)

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> Tensor:
        """Compute causal attention; see `Ops.attention`."""
        if meta.step is None:  # the same for all layers
            meta.step = _device_step(meta, q, keys.shape[2])
        step, out = meta.step, torch.empty_like(q, memory_format=torch.contiguous_format)
        count = step.decoding
        if step.decodes is not None:
            assert step.parts is not None
            if not step.split:  # once for all layers
                split_keys(step.decodes, step.parts)
                step.split = True
            given = (q[:count], keys, values, step.decodes, step.parts)
            if step.shared_parts is not None:
                cascade(*given, shared_parts=step.shared_parts, out=out[:count])
            else:
                decode(*given, out=out[:count])
        if step.prefills is not None:
            prefill(q[count:], keys, values, step.prefills, step.tile_queries, out[count:])
        return out

    def silu_mul(self, x: Tensor) -> Tensor:
        """Return ``silu(a) * b`` of x = [a, b]."""
        return silu_mul(x)

    def embed_stream(self, tokens: Tensor, embedding: Tensor, gain: Tensor) -> Stream:
        """Look up embeddings, ready for a norm with `gain`."""
        return skinny_gemm.embed_stream(tokens, embedding, gain)

    def norm_linear(
        self, linear: Linear, stream: Stream, eps: float, gated: bool = False
    ) -> Tensor:
        """Return ``linear(norm(x))``, with `silu_mul` of it if `gated`."""
        assert isinstance(linear, PlainLinear)
        return skinny_gemm.norm_linear(
            stream,
            linear.weight,
            linear.bias,
            eps=eps,
            gated=gated,
            scratch=self._scratch(stream.x),
        )

    def linear_add(self, linear: Linear, x: Tensor, onto: Stream, gain: Tensor) -> Stream:
        """Add ``linear(x)`` to the stream, ready for a norm with `gain`."""
        assert isinstance(linear, PlainLinear)
        return skinny_gemm.linear_add(
            x, linear.weight, linear.bias, onto=onto, gain=gain, scratch=self._scratch(x)
        )

    def _scratch(self, x: Tensor) -> skinny_gemm.Scratch:
        if self._shared_scratch is None:
            self._shared_scratch = skinny_gemm.Scratch(x.device)
        return self._shared_scratch


def _device_step(meta: BatchMeta, q: Tensor, kv_heads: int) -> DeviceStep:
    """Upload the lists of a batch that was put together by hand."""
    (_, heads, depth), device = q.shape, q.device

    def ints(values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).to(device)

    width = max(len(t) for t in meta.tables)
    tables = ints([[max(b, 0) for b in t] + [0] * (width - len(t)) for t in meta.tables])
    lengths, count = meta.query_lengths, len(meta.query_lengths)
    slots, contexts = ints(list(range(count))), ints(meta.contexts)
    if max(lengths) == 1:
        decodes = DecodeBatch(tables, slots, contexts, meta.window)
        spare = spare_parts(kv_heads, count)
        return DeviceStep(count, decodes, KeyParts.allocate(count, heads, depth, spare, device))
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    size = prefilling.tile_queries(heads, kv_heads, depth, max(lengths))
    tiles = [list(pair) for pair in zip(*prefilling.tiles(lengths, size), strict=True)]
    prefills = PrefillBatch(tables, slots, contexts, ints(starts), ints(tiles), meta.window)
    return DeviceStep(0, prefills=prefills, tile_queries=size)


__all__ = ["TritonOps"]
