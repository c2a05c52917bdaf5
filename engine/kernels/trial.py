"""Attention over a store that nobody uses yet, for timing its tilings."""

import torch
from torch import Tensor

from drawloom.engine.kernels import decode, prefill
from drawloom.engine.kernels.decode import Decodes, Parts, spare_parts
from drawloom.engine.kernels.prefill import Prefills
from drawloom.engine.kernels.tuning import Key

_BATCH, _CHUNK = 32, 2048


class Trial:
    """A batch that decodes over all of the store's first `tokens`, and a chunk of a prompt, on
    random numbers: a chip is faster on zeros. `clear` leaves zeros.

    Args:
        key: heads, key heads and depth.
        blocks: all blocks of the store.
        keys: of one layer, [blocks, size, kv_heads, d], and values.
    """

    def __init__(self, key: Key, blocks: Tensor, keys: Tensor, values: Tensor, tokens: int) -> None:
        heads, kv_heads, depth = key
        self._key, self._keys, self._values = key, keys, values
        device, size = keys.device, keys.shape[1]
        batch = max(1, min(_BATCH, tokens // size))
        each = tokens // batch // size * size
        rows = blocks[: batch * each // size].view(batch, -1)

        def ints(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        self._rows = Decodes(rows, ints(list(range(batch))), ints([each] * batch))
        self._parts = Parts.room(batch, heads, depth, spare_parts(kv_heads), device)
        self._used = keys[: tokens // size], values[: tokens // size]
        for part in self._used:
            part.normal_()
        self._q = torch.randn(batch, heads, depth, dtype=keys.dtype, device=device)
        self._length = min(_CHUNK, tokens)
        self._whole = blocks[None], ints([0]), ints([self._length]), ints([0, self._length])
        self._chunk = torch.randn(self._length, heads, depth, dtype=keys.dtype, device=device)

    def decode(self) -> None:
        decode.cut(self._rows, self._parts)
        decode.decode(self._q, self._keys, self._values, self._rows, self._parts)

    def prefill(self) -> None:
        """Its tiles are as large as the tiling has them."""
        size = prefill.queries(*self._key, self._length)
        pairs = torch.tensor(prefill.tiles([self._length], size), dtype=torch.int32)
        tiles = pairs.T.contiguous().to(self._keys.device)
        at = Prefills(*self._whole, tiles)
        prefill.prefill(self._chunk, self._keys, self._values, at, size)

    def clear(self) -> None:
        for part in self._used:
            part.zero_()


__all__ = ["Trial"]
