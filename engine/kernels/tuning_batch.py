"""Attention over a store that nobody uses yet, for timing its tilings."""

import torch
from torch import Tensor

from drawloom.engine.kernels import decode, prefill
from drawloom.engine.kernels.decode import Decodes, Parts, spare_parts
from drawloom.engine.kernels.prefill import Prefills

_CHUNK = 2048


class Trial:
    """A batch that decodes over the store's first `tokens`, unevenly, and a chunk of a prompt, on
    random numbers: a chip is faster on zeros. `clear` leaves zeros.

    Args:
        key: heads, key heads and depth.
        blocks: all blocks of the store.
        keys: of one layer, [blocks, size, kv_heads, d], and values.
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
        self._rows = Decodes(rows, ints(list(range(batch))), ints(lengths))
        self._parts = Parts.room(batch, heads, depth, spare_parts(kv_heads, batch), device)
        self._used = keys[: tokens // size], values[: tokens // size]
        for part in self._used:
            part.normal_()
        self._q = torch.randn(batch, heads, depth, dtype=keys.dtype, device=device)
        self._tiles: dict[int, Tensor] = {}
        self._length = min(_CHUNK, tokens)
        self._whole = blocks[None], ints([0]), ints([self._length]), ints([0, self._length])
        self._chunk = torch.randn(self._length, heads, depth, dtype=keys.dtype, device=device)

    def decode(self) -> None:
        decode.cut(self._rows, self._parts)
        decode.decode(self._q, self._keys, self._values, self._rows, self._parts)

    def prefill(self) -> None:
        """Its tiles are as large as the tiling has them."""
        size = prefill.queries(*self._key, self._length)
        if size not in self._tiles:  # once, as it cannot be part of a graph
            pairs = torch.tensor(prefill.tiles([self._length], size), dtype=torch.int32)
            self._tiles[size] = pairs.T.contiguous().to(self._keys.device)
        at = Prefills(*self._whole, self._tiles[size])
        prefill.prefill(self._chunk, self._keys, self._values, at, size)

    def clear(self) -> None:
        for part in self._used:
            part.zero_()


__all__ = ["Trial"]
