"""Inputs of a GPU step, packed on the host into one copy.

The host knows the position of every sequence. The device keeps what lasts from step to step: the
block table and the last sampled token of each slot. So the inputs of a decode step are a few
integers a row, and one copy uploads them. The offsets of the fields depend on their sizes alone, so
a captured graph always finds them in the same place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from drawloom.engine.core.step_plan import Chunk
from drawloom.engine.runners.sampler import noise_key
from drawloom.engine.sequence import UNSAMPLED

_ALIGN = 4  # 16 bytes: kernels are compiled for pointers that are so aligned
_MAX_GROUPS = 8
_MIN_SHARING, _MIN_SHARED_TOKENS = 4, 256  # rows and prefix from which cascade attention pays off


@dataclass(frozen=True, slots=True)
class StepShape:
    """Describe the sizes of a step's fields; a captured graph is chosen by them.

    Attributes:
        tokens: T, all tokens.
        decoding: D, the first tokens, one of a sequence each.
        chunks: sequences of which more tokens are computed.
        tiles: tiles of these chunks (see `kernels.prefill`).
        rows: R, tokens whose hidden states leave the last layer.
        sampled: S, the first rows: one of each decoding sequence, and the last of each chunk.
        updates: changed entries of the block tables.
        shared_rows: entries of `DecodeBatch.shared_rows`, 0 without a shared prefix.
        tile_queries: query tokens of one prefill tile.
    """

    tokens: int
    decoding: int
    chunks: int
    tiles: int
    rows: int
    sampled: int
    updates: int
    shared_rows: int
    tile_queries: int = 1

    def fields(self) -> Iterator[tuple[str, int]]:
        """Yield the name and the integers of each field, in order."""
        yield "keys", 2 * self.sampled
        yield "temperatures", self.sampled
        yield "top_p", self.sampled
        yield "top_k", self.sampled
        yield "sample_slots", self.sampled
        yield "ids", self.tokens
        yield "positions", self.tokens
        yield "kv_slots", self.tokens
        yield "clear_slots", self.tokens
        yield "slots", self.decoding
        yield "contexts", self.decoding
        yield "shared_tokens", self.decoding if self.shared_rows else 0
        yield "shared_rows", self.shared_rows
        yield "chunk_slots", self.chunks
        yield "chunk_contexts", self.chunks
        yield "starts", self.chunks + 1 if self.chunks else 0
        yield "tiles", 2 * self.tiles
        yield "rows", self.rows
        yield "index", self.updates
        yield "value", self.updates

    @property
    def size(self) -> int:
        """Return the integers of all fields, padding for alignment included."""
        return _field_offsets(self)[1]


@lru_cache(maxsize=256)
def _field_offsets(shape: StepShape) -> tuple[dict[str, slice], int]:
    """Return the place of each field in the packed integers, and their number."""
    found, at = {}, 0
    for name, size in shape.fields():
        found[name] = slice(at, at + size)
        at += -(-size // _ALIGN) * _ALIGN
    return found, at


class Packed:
    """Give access to the packed integers of a step, on the host or on the device."""

    def __init__(self, memory: Tensor, shape: StepShape) -> None:
        self.shape = shape
        self.offsets, self.size = _field_offsets(shape)
        self.memory = memory[: self.size]

    def ints(self, name: str) -> Tensor:
        """Return a view of an int32 field."""
        return self.memory[self.offsets[name]]

    def longs(self, name: str) -> Tensor:
        """Return a view of a field as int64."""
        return self.ints(name).view(torch.int64)

    def floats(self, name: str) -> Tensor:
        """Return a view of a field as float32."""
        return self.ints(name).view(torch.float32)


class SlotTable:
    """Mirror on the host what the device keeps of each sequence slot.

    Args:
        count: sequences that may run at a time; the slot behind them is for padding.
        width: KV blocks that a sequence may have.
        block_size: tokens of a KV block.
    """

    def __init__(self, count: int, width: int, block_size: int) -> None:
        self.count, self.width, self._size = count, width, block_size
        self.tables = np.zeros((count + 1, width), np.int32)
        self._temperatures = np.zeros(count + 1, np.float32)
        self._top_p = np.ones(count + 1, np.float32)
        self._top_k = np.zeros(count + 1, np.int32)
        self._groups: tuple[list[int], list[tuple[int, list[int]]]] = ([], [])

    @property
    def padding_slot(self) -> int:
        """Return the slot of padding rows."""
        return self.count

    def updates(self, chunks: list[Chunk]) -> tuple[list[int], list[int]]:
        """Bring the tables up to date; return flat indices and values of the changed entries."""
        index: list[int] = []
        value: list[int] = []
        for chunk in chunks:
            seq, blocks = chunk.seq, chunk.blocks
            sent, count = seq.table_blocks, len(blocks)
            if sent == count:
                continue
            slot = seq.slot
            if not sent:
                params = seq.params
                self._temperatures[slot] = params.temperature
                self._top_p[slot], self._top_k[slot] = params.top_p, params.top_k
                self._groups = ([], [])
            new = [block if block >= 0 else 0 for block in blocks[sent:]]
            self.tables[slot, sent:count] = new
            base = slot * self.width
            index += range(base + sent, base + count)
            value += new
            seq.table_blocks = count
        return index, value

    def kv_slots(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the KV slots [T] of tokens at `positions` of the sequences in `slots`."""
        size = self._size
        found: np.ndarray = self.tables[slots, positions // size] * size + positions % size
        return found

    def shared_prefix_groups(
        self, slots: list[int], tile: int
    ) -> tuple[list[int], list[int]] | None:
        """Group the rows of a batch that share a prefix, for cascade attention.

        Args:
            slots: the sequence slot of each row.
            tile: rows of one tile; a group is padded with -1 to whole tiles.

        Returns:
            The shared tokens of each row, and the rows, tile by tile; None if it does not pay off.
        """
        if slots != self._groups[0]:
            self._groups = (slots, self._find_groups(slots))
        groups = self._groups[1]
        if not groups:
            return None
        shared_tokens, tiles = [0] * len(slots), []
        for tokens, rows in groups:
            for row in rows:
                shared_tokens[row] = tokens
            tiles += rows + [-1] * (-len(rows) % tile)
        return shared_tokens, tiles

    def max_shared_rows(self, batch: int, tile: int) -> int:
        """Return the most entries that `shared_prefix_groups` fills for a batch of this size."""
        return tile * (-(-batch // tile) + _MAX_GROUPS)

    def _find_groups(self, slots: list[int]) -> list[tuple[int, list[int]]]:
        by_first: dict[int, list[int]] = {}
        for row, first in enumerate(self.tables[slots, 0].tolist()):
            by_first.setdefault(first, []).append(row)
        found = []
        for rows in by_first.values():
            if len(rows) < _MIN_SHARING:
                continue
            tables = self.tables[[slots[row] for row in rows]]
            same = (tables == tables[0]).all(0)
            blocks = self.width if same.all() else int(same.argmin())
            if blocks * self._size >= _MIN_SHARED_TOKENS:
                found.append((blocks * self._size, rows))
        found.sort(key=lambda group: -group[0] * len(group[1]))
        return found[:_MAX_GROUPS]

    def put_sampling(self, chosen: list[tuple[int, Chunk]], into: Packed) -> bool:
        """Write the sampling fields of the given rows; return whether any is filtered.

        Args:
            chosen: row and chunk of each token to sample.
            into: written.
        """
        rows = [row for row, _ in chosen]
        slots = [chunk.seq.slot for _, chunk in chosen]
        temperatures, top_p = self._temperatures[slots], self._top_p[slots]
        top_k = self._top_k[slots]
        for target, values, rest in (
            (into.floats("temperatures"), temperatures, 0),
            (into.floats("top_p"), top_p, 1),
            (into.ints("top_k"), top_k, 0),
            (into.ints("sample_slots"), slots, -1),
        ):
            array = target.numpy()
            array[:] = rest
            array[rows] = values
        noisy = temperatures > 0
        if not noisy.any():
            return False
        keys = into.longs("keys").numpy()
        for row, chunk in chosen:
            params = chunk.seq.params
            if params.temperature:
                keys[row] = noise_key(params.seed, chunk.seq.noise, chunk.end)
        return bool((noisy & ((top_p < 1) | (top_k > 0))).any())


def fed(chunk: Chunk) -> int:
    """Return the only token of a chunk as the kernel `feed` expects it."""
    token = chunk.tokens[0]
    return -1 - chunk.seq.slot if token == UNSAMPLED else token


def put(target: Tensor, values: Sequence[int] | np.ndarray, rest: int) -> None:
    """Write values to the front of a field, and `rest` behind them."""
    array, count = target.numpy(), len(values)
    array[:count] = values
    array[count:] = rest


__all__ = ["Packed", "SlotTable", "StepShape", "fed", "put"]
