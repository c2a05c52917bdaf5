"""Types that kernels and operations exchange; they need torch alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

RECORD = 8  # integers of a part: row, begin, end, slot, oldest key, the row's first part, its parts


@dataclass(slots=True)
class DecodeBatch:
    """Locate the KV of B decoding sequences on the device.

    Attributes:
        tables: [slots, W] int32, the KV blocks of each sequence slot.
        slots: [B] int32, the sequence slot of each row.
        contexts: [B] int32, tokens of each row, the new one included; 0 marks a padding row.
        window: tokens that a token attends to, itself included; 0 is all.
        shared_tokens: [B] int32, length of the prefix that `cascade` reads once for many rows.
        shared_rows: [tiles * rows] int32, the rows that share a prefix, tile by tile; -1 pads.
    """

    tables: Tensor
    slots: Tensor
    contexts: Tensor
    window: int = 0
    shared_tokens: Tensor | None = None
    shared_rows: Tensor | None = None


@dataclass(slots=True)
class KeyParts:
    """Hold the parts that the keys of a decode step are split into, and their results.

    Attributes:
        offsets: [B + 1] int32, the first part of each row.
        records: [P, RECORD] int32, everything that a program must know of a part, read at once;
            row -1 marks an unused part.
        partial: [P, heads, d] float32, the weighted mean of each part.
        mass: [P, heads] float32, the base-2 logarithm of each part's softmax mass.
        arrived: [B * heads] int32, finished parts of a row; zeros between steps.
    """

    offsets: Tensor
    records: Tensor
    partial: Tensor
    mass: Tensor
    arrived: Tensor

    @classmethod
    def allocate(
        cls, batch: int, heads: int, depth: int, spare: int, device: torch.device
    ) -> "KeyParts":
        """Allocate parts for batches of up to `batch` rows: one a row, and `spare` more."""
        count = batch + max(1, spare)

        def ints(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        return cls(
            offsets=ints(batch + 1),
            records=ints(count * RECORD).view(count, RECORD),
            partial=torch.empty(count, heads, depth, dtype=torch.float32, device=device),
            mass=torch.empty(count, heads, dtype=torch.float32, device=device),
            arrived=ints(batch * heads),
        )

    def narrow(self, batch: int, spare: int) -> "KeyParts":
        """Return views of the first parts, as many as a batch of this size needs."""
        count = min(batch + spare, self.records.shape[0])
        return KeyParts(
            offsets=self.offsets[: batch + 1],
            records=self.records[:count],
            partial=self.partial[:count],
            mass=self.mass[:count],
            arrived=self.arrived,
        )


@dataclass(slots=True)
class PrefillBatch:
    """Locate the query tokens of B sequences, laid end to end, and their KV on the device.

    Attributes:
        tables: [slots, W] int32, the KV blocks of each sequence slot.
        slots: [B] int32, the sequence slot of each sequence.
        contexts: [B] int32, tokens of each after this step; 0 marks padding, which gives zeros.
        starts: [B + 1] int32, index of the first query token of each.
        tiles: [2, N] int32, the sequence of each tile of query tokens, and the tile's first token.
        window: tokens that a token attends to, itself included; 0 is all.
    """

    tables: Tensor
    slots: Tensor
    contexts: Tensor
    starts: Tensor
    tiles: Tensor
    window: int = 0


@dataclass(slots=True)
class DeviceStep:
    """Describe the tokens of a step as kernels read them, all of it on the device.

    Attributes:
        decoding: the first tokens, one of a sequence each; those behind them are whole chunks.
        decodes: the sequences of the first tokens.
        parts: room for the partial results of the first tokens.
        shared_parts: room for those of shared prefixes (see `kernels.cascade`).
        prefills: the sequences of the chunks.
        tile_queries: query tokens of one prefill tile.
        split: the keys of this step have been split into `parts`.
    """

    decoding: int
    decodes: DecodeBatch | None = None
    parts: KeyParts | None = None
    shared_parts: tuple[Tensor, Tensor] | None = None
    prefills: PrefillBatch | None = None
    tile_queries: int = 1
    split: bool = False


@dataclass(slots=True)
class BatchMeta:
    """Describe the positions of a step: T tokens of B sequences, laid end to end.

    Attributes:
        positions: [T] int64, position of each token in its sequence.
        kv_slots: [T] int64, block * block_size + offset at which its keys and values are stored.
        rows: [R] int64, indices of the tokens whose hidden states are wanted.
        query_lengths: tokens of each sequence in this step.
        contexts: tokens of each sequence after this step.
        tables: the KV blocks of each sequence; -1 where one fell behind the window.
        window: tokens that a token attends to, itself included; 0 is all.
        every: `rows` are all tokens, in their order.
        step: the same for kernels; if given, the three lists are empty.
    """

    positions: Tensor
    kv_slots: Tensor
    rows: Tensor
    query_lengths: list[int]
    contexts: list[int]
    tables: list[list[int]]
    window: int = 0
    every: bool = False
    angles: tuple[Tensor, Tensor] | None = None
    step: DeviceStep | None = None

    def rotation(self, rope: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [T, 1, d / 2] of the positions, computed once for all layers."""
        if self.angles is None:
            cos, sin = (table[self.positions].unsqueeze(1).to(dtype) for table in rope)
            self.angles = cos, sin
        return self.angles


@dataclass(slots=True)
class RopeArgs:
    """Bundle the inputs of `rope_and_store` for one layer.

    Attributes:
        q: [T, heads, d].
        k: [T, kv_heads, d].
        v: [T, kv_heads, d].
        norms: gains [d] of the query and key norms (Qwen3) and their epsilon, None without them.
        rope: cosines and sines [P, d / 2] by position.
        keys: [blocks, block_size, kv_heads, d] of the layer, written in place.
        values: alike.
        meta: positions and KV slots of the T tokens.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    norms: tuple[Tensor, Tensor, float] | None
    rope: tuple[Tensor, Tensor]
    keys: Tensor
    values: Tensor
    meta: BatchMeta


@dataclass(slots=True)
class Stream:
    """Carry the residual stream of a small batch from one fused product to the next.

    Attributes:
        x: [T, H].
        scaled: [T, H], x times the gain of the norm that comes next.
        squares: [tiles, >= T] float32, sums of the squares of each row of x, tile by tile.
    """

    x: Tensor
    scaled: Tensor
    squares: Tensor


@dataclass(slots=True)
class SamplingRows:
    """Describe how a token is sampled from each of R rows of logits.

    Attributes:
        slots: [R] int32, the sequence slot that a row's token goes to; -1 marks a padding row.
        temperatures: [R] float32; 0 is greedy.
        keys: [R] int64, keys of the noise.
        top_k: [R] int32; 0 is all. Read only if `filtered`.
        top_p: [R] float32; 1 is all. Read only if `filtered`.
        filtered: some row asks for top-k or top-p.
    """

    slots: Tensor
    temperatures: Tensor
    keys: Tensor
    top_k: Tensor
    top_p: Tensor
    filtered: bool


__all__ = [
    "RECORD",
    "BatchMeta",
    "DecodeBatch",
    "DeviceStep",
    "KeyParts",
    "PrefillBatch",
    "RopeArgs",
    "SamplingRows",
    "Stream",
]
