"""Operations that a model asks of a device: a few fused ones, over a paged KV cache.

`reference` defines in plain torch what each computes; `cpu` and `triton` compute it fast.
"""

from typing import Protocol

import torch
from torch import Tensor

from drawloom.engine.kernels.types import BatchMeta, RopeArgs, Stream


class Linear(Protocol):
    """Compute ``y = x W^T + b`` over weights packed for the device."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def update(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replace the weights by others of the same shape, in place."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the weights to a device."""
        ...


class Stack(Protocol):
    """Compute several layers of a decoder in one call."""

    def __call__(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        store: Tensor,
        heads: int,
        eps: float,
        meta: BatchMeta,
    ) -> tuple[Tensor, Tensor]:
        """Compute the layers.

        Args:
            x: [T, H] float32 or bfloat16, overwritten.
            rope: cosines and sines [P, d / 2] by position.
            store: `KVStore.tensor`; keys and values are written in place.
            heads: query heads.
            eps: epsilon of the norms.
            meta: positions of the T tokens.

        Returns:
            The last layer's output and the residual that it is to be added to, both [T, H].
        """
        ...


class Ops(Protocol):
    """Compute the operations of a model on one kind of device."""

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Pack the weights [N, K] and bias [N] of a linear layer for the device."""
        ...

    def stack(
        self, linears: list[list[Linear]], norms: list[list[Tensor]], group: int, depth: int
    ) -> Stack | None:
        """Fuse layers into one call, if this device can.

        Args:
            linears: of each layer, its four products: qkv, output, gate_up and down.
            norms: of each layer, the gains of its two norms.
            group: query heads for each key head.
            depth: dimensions of a head.

        Returns:
            None where each operation is a call of its own.
        """
        ...

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the RMS norm of ``x + residual`` and that sum, both [T, H]."""
        ...

    def rope_and_store(self, args: RopeArgs) -> Tensor:
        """Rotate queries and keys, and store keys and values in their KV slots.

        Queries and keys are normalised first if the model does so (Qwen3).

        Returns:
            The rotated queries [T, heads, d].
        """
        ...

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta) -> Tensor:
        """Compute causal attention of a step's tokens over their sequences, at scale d ** -0.5.

        Args:
            q: [T, heads, d].
            keys: [blocks, block_size, kv_heads, d].
            values: alike.
            meta: positions of the T tokens; `meta.window` limits the keys of each.

        Returns:
            [T, heads, d].
        """
        ...

    def silu_mul(self, x: Tensor) -> Tensor:
        """Return ``silu(a) * b`` [T, I] of x = [a, b] [T, 2 I]."""
        ...

    # The following three serve small batches, at most 64 tokens on a GPU, where each is one kernel.

    def embed_stream(self, tokens: Tensor, embedding: Tensor, gain: Tensor) -> Stream:
        """Look up tokens [T] in `embedding` [V, H], ready for a norm with `gain` [H]."""
        ...

    def norm_linear(
        self, linear: Linear, stream: Stream, eps: float, gated: bool = False
    ) -> Tensor:
        """Return ``linear(norm(x))`` [T, N], with `silu_mul` of it if `gated`."""
        ...

    def linear_add(self, linear: Linear, x: Tensor, onto: Stream, gain: Tensor) -> Stream:
        """Add ``linear(x)`` of x [T, K] to the stream, ready for a norm with `gain` [H]."""
        ...


__all__ = ["Linear", "Ops", "Stack"]
