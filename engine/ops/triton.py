"""The operations on a GPU: Triton kernels, and cuBLAS for the matrices."""

import torch
from torch import Tensor

from drawloom.engine.kernels import skinny_gemm
from drawloom.engine.kernels.cascade import cascade
from drawloom.engine.kernels.decode import cut, decode
from drawloom.engine.kernels.prefill import prefill
from drawloom.engine.kernels.rmsnorm import rms_norm
from drawloom.engine.kernels.rope import rope_and_store
from drawloom.engine.kernels.silu_mul import silu_mul
from drawloom.engine.ops.base import BatchMeta, Linear, Stream
from drawloom.engine.ops.reference import PlainLinear, ReferenceOps
from drawloom.engine.ops.step import step_of


class TritonOps(ReferenceOps):
    """Same signatures and results as the reference, by kernels."""

    def __init__(self) -> None:
        self._scratch: skinny_gemm.Scratch | None = None

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = rms_norm(x, weight, eps, residual)
        return out

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
        return rope_and_store(q, k, v, norms, rope, keys, values, meta.positions, meta.slots)

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> Tensor:
        if meta.step is None:  # the same for all layers
            meta.step = step_of(meta, q.shape[1], keys.shape[2], q.shape[2], q.device)
        step, out = meta.step, torch.empty_like(q, memory_format=torch.contiguous_format)
        count = step.decoding
        if step.decodes is not None:
            assert step.parts is not None
            if not step.cut:  # once for all layers
                cut(step.decodes, step.parts)
                step.cut = True
            if step.before is not None:
                cascade(q[:count], keys, values, step.decodes, step.parts, step.before, out[:count])
            else:
                decode(q[:count], keys, values, step.decodes, step.parts, out[:count])
        if step.prefills is not None:
            prefill(q[count:], keys, values, step.prefills, step.size, out[count:])
        return out

    def silu_mul(self, x: Tensor) -> Tensor:
        return silu_mul(x)

    def enter(self, tokens: Tensor, embedding: Tensor, gain: Tensor) -> Stream:
        return skinny_gemm.enter(tokens, embedding, gain)

    def normed(self, linear: Linear, stream: Stream, eps: float, gated: bool = False) -> Tensor:
        assert isinstance(linear, PlainLinear)
        return skinny_gemm.normed(
            stream, linear.weight, linear.bias, eps=eps, gated=gated, scratch=self._room(stream.x)
        )

    def added(self, linear: Linear, x: Tensor, onto: Stream, gain: Tensor) -> Stream:
        assert isinstance(linear, PlainLinear)
        return skinny_gemm.added(
            x, linear.weight, linear.bias, onto=onto, gain=gain, scratch=self._room(x)
        )

    def _room(self, x: Tensor) -> skinny_gemm.Scratch:
        if self._scratch is None:
            self._scratch = skinny_gemm.Scratch(x.device)
        return self._scratch


__all__ = ["TritonOps"]
