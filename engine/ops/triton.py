"""The operations on a GPU: Triton kernels, and cuBLAS for the matrices."""

from torch import Tensor

from drawloom.engine.kernels.attention import attention
from drawloom.engine.kernels.rmsnorm import rms_norm
from drawloom.engine.kernels.rope import rope_and_store
from drawloom.engine.kernels.silu_mul import silu_mul
from drawloom.engine.ops.base import BatchMeta
from drawloom.engine.ops.reference import ReferenceOps


class TritonOps(ReferenceOps):
    """Same signatures and results as the reference, by kernels."""

    def __init__(self) -> None:
        self._meta: BatchMeta | None = None
        self._tables: tuple[Tensor, Tensor, Tensor] | None = None

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
        if self._meta is not meta or self._tables is None:  # the same for all layers of a step
            self._meta, self._tables = meta, meta.device_tables(q.device)
        return attention(q, keys, values, *self._tables, max(meta.query_lengths), meta.window)

    def silu_mul(self, x: Tensor) -> Tensor:
        return silu_mul(x)


__all__ = ["TritonOps"]
