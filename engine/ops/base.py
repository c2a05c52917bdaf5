"""What a model asks of a device: a handful of fused operations over a paged KV cache.

`reference` says in plain torch what each must compute; `cpu` and `triton` compute it quickly.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from drawloom.engine.ops.step import Step


@dataclass(slots=True)
class BatchMeta:
    """Where the tokens of a step stand. T tokens of B sequences, laid end to end.

    Attributes:
        positions: [T] int64, place of each token in its sequence.
        slots: [T] int64, block * block_size + offset where its keys and values go.
        rows: [R] int64, which of the T tokens are sampled from.
        query_lengths: tokens of each sequence in this step.
        contexts: tokens of each sequence after this step.
        tables: the blocks of each sequence; -1 where one fell behind the window.
        window: tokens that a token attends to, itself included; 0 is all.
        every: whether `rows` are all of the tokens, in their order.
        step: the same for kernels, on the device; where it is given, the three lists are empty.
    """

    positions: Tensor
    slots: Tensor
    rows: Tensor
    query_lengths: list[int]
    contexts: list[int]
    tables: list[list[int]]
    window: int = 0
    every: bool = False
    angles: tuple[Tensor, Tensor] | None = None
    step: "Step | None" = None

    def rotation(self, rope: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, d / 2] of this step's positions; the same for all layers."""
        if self.angles is None:
            cos, sin = (table[self.positions].unsqueeze(1).to(dtype) for table in rope)
            self.angles = cos, sin
        return self.angles


@dataclass(slots=True)
class Stream:
    """The residual stream of a step of few tokens, as one product hands it to the next.

    Attributes:
        x: [T, H].
        scaled: [T, H], x times the gain of the norm that comes next.
        squares: [tiles, >= T] float32, of each row sums of the squares of x, tile by tile.
    """

    x: Tensor
    scaled: Tensor
    squares: Tensor


class Linear(Protocol):
    """``y = x W^T + b`` over weights packed for the device."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def update(self, weight: Tensor, bias: Tensor | None) -> None:
        """Other weights of the same shape, in place."""
        ...

    def to(self, device: torch.device) -> None: ...


class Stack(Protocol):
    """Layers of a decoder in one call."""

    def __call__(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        store: Tensor,
        heads: int,
        eps: float,
        meta: BatchMeta,
    ) -> tuple[Tensor, Tensor]:
        """Return what the last layer adds, and the residual to add it to, [T, H]; `x` is written
        over, `store` is `KVStore.tensor`."""
        ...


class Ops(Protocol):
    """The operations of one device. `keys` and `values` are [blocks, block_size, kv_heads, d]."""

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear: ...

    def stack(
        self, linears: list[list[Linear]], norms: list[list[Tensor]], group: int, depth: int
    ) -> Stack | None:
        """Return layers as one call, given their four products (qkv, output, gate_up, down) and
        their two norms, with `group` queries of this depth for a key; None where each operation
        is a call of its own."""
        ...

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Norm of ``x + residual`` and that sum. [T, H]."""
        ...

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
        """Normalise (Qwen3) and rotate queries and keys, store keys and values in their slots.

        `q` is [T, heads, d], `k` and `v` [T, kv_heads, d], `rope` cosines and sines [P, d / 2].
        Returns the rotated queries.
        """
        ...

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> Tensor:
        """Causal attention of the new tokens over the context of their sequence, or its last
        `meta.window` tokens.

        `q` is [T, heads, d]; so is the result. Scale is d ** -0.5.
        """
        ...

    def silu_mul(self, x: Tensor) -> Tensor:
        """``silu(a) * b`` of x = [a, b]. [T, 2 I] to [T, I]."""
        ...

    def enter(self, tokens: Tensor, embedding: Tensor, gain: Tensor) -> Stream:
        """Rows of `embedding` [V, H], ready for a norm with `gain`. For few tokens; [T] to [T, H].

        This and the next two are for the few tokens of a small batch, at most 64 on a GPU: there
        each is one kernel."""
        ...

    def normed(self, linear: Linear, stream: Stream, eps: float, gated: bool = False) -> Tensor:
        """``linear(norm(x))``, with `silu_mul` if `gated`. [T, H] to [T, N]."""
        ...

    def added(self, linear: Linear, x: Tensor, onto: Stream, gain: Tensor) -> Stream:
        """``onto + linear(x)``, ready for a norm with `gain`. [T, K] to [T, H]."""
        ...


__all__ = ["BatchMeta", "Linear", "Ops", "Stack", "Stream"]
