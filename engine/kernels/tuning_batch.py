"""Attention over a still unused KV store, for timing its tilings."""

import torch
from torch import Tensor

from drawloom.engine.kernels import decode, prefill
from drawloom.engine.kernels.types import DecodeBatch, KeyParts, PrefillBatch

_CHUNK = 2048


class TuningBatch:
    """Run a decode batch of uneven lengths and a chunk of a prompt over part of a KV store.

    The store is filled with random numbers, because a chip is faster on zeros; `clear` zeroes it.

    Args:
        key: heads, key heads and depth.
        blocks: [N] int32, all blocks of the store.
        keys: [blocks, size, kv_heads, d] of one layer.
        values: alike.
        batch: the most rows of the decode batch.
        tokens: tokens of the store that are used.
    """

    def __init__(
        self,
        key: tuple[int, int, int],
        blocks: Tensor,
        keys: Tensor,
        values: Tensor,
        batch: int,
        tokens: int,
    ) -> None:
        heads, kv_heads, depth = key
        self._key, self._keys, self._values = key, keys, values
        device, size = keys.device, keys.shape[1]
        batch = max(1, min(batch, tokens // size))
        each = tokens // batch // size * size
        rows = blocks[: batch * each // size].view(batch, -1)

        def ints(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        lengths = [each - row % 4 * (each // 4) for row in range(batch)]
        self._rows = DecodeBatch(rows, ints(list(range(batch))), ints(lengths))
        self._parts = KeyParts.allocate(
            batch, heads, depth, decode.spare_parts(kv_heads, batch), device
        )
        self._used = keys[: tokens // size], values[: tokens // size]
        for part in self._used:
            part.normal_()
        self._q = torch.randn(batch, heads, depth, dtype=keys.dtype, device=device)
        self._tiles: dict[int, Tensor] = {}
        self._length = min(_CHUNK, tokens)
        self._whole = blocks[None], ints([0]), ints([self._length]), ints([0, self._length])
        self._chunk = torch.randn(self._length, heads, depth, dtype=keys.dtype, device=device)

    def decode(self) -> None:
        """Decode one token of each row."""
        decode.split_keys(self._rows, self._parts)
        decode.decode(self._q, self._keys, self._values, self._rows, self._parts)

    def prefill(self) -> None:
        """Compute the chunk, in tiles of the current tiling's size."""
        size = prefill.tile_queries(*self._key, self._length)
        if size not in self._tiles:  # copied once, because a graph cannot capture the copy
            pairs = torch.tensor(prefill.tiles([self._length], size), dtype=torch.int32)
            self._tiles[size] = pairs.T.contiguous().to(self._keys.device)
        batch = PrefillBatch(*self._whole, self._tiles[size])
        prefill.prefill(self._chunk, self._keys, self._values, batch, size)

    def clear(self) -> None:
        """Zero the part of the store that was used."""
        for part in self._used:
            part.zero_()


__all__ = ["TuningBatch"]
