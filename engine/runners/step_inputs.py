"""What a step of a GPU reads, packed on the host into one copy.

The host knows where every sequence stands, the device keeps what does not change from step to
step: block tables, by seat, and what each seat said last. So a step of decoding is a few integers
a row, and one copy takes them over. The order of fields is fixed by their sizes alone: a captured
graph finds them where they were.
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
_GROUPS = 8
_SHARED_BY, _SHARED_TOKENS = 4, 256


@dataclass(frozen=True, slots=True)
class Layout:
    """How many there are of what, in a step.

    Attributes:
        tokens: T, all tokens.
        decoding: D, the first of them, one of a sequence each.
        chunks: sequences of which more are computed.
        tiles: tiles of these (see `kernels.prefill`).
        rows: R, tokens that come out of the last layer.
        sampled: S, the first of these: one of each that decodes, and the last of each chunk.
        updates: entries of block tables that changed.
        members: places in tiles of sequences that begin alike (see `kernels.cascade`).
        queries: tokens of one of the `tiles`.
    """

    tokens: int
    decoding: int
    chunks: int
    tiles: int
    rows: int
    sampled: int
    updates: int
    members: int
    queries: int = 1

    def fields(self) -> Iterator[tuple[str, int]]:
        yield "keys", 2 * self.sampled
        yield "temperatures", self.sampled
        yield "top_p", self.sampled
        yield "top_k", self.sampled
        yield "said_by", self.sampled
        yield "ids", self.tokens
        yield "positions", self.tokens
        yield "slots", self.tokens
        yield "says", self.tokens
        yield "seats", self.decoding
        yield "contexts", self.decoding
        yield "since", self.decoding if self.members else 0
        yield "members", self.members
        yield "chunk_seats", self.chunks
        yield "chunk_contexts", self.chunks
        yield "starts", self.chunks + 1 if self.chunks else 0
        yield "tiles", 2 * self.tiles
        yield "rows", self.rows
        yield "index", self.updates
        yield "value", self.updates

    @property
    def size(self) -> int:
        """Integers of it all."""
        return _places(self)[1]


@lru_cache(maxsize=256)
def _places(layout: Layout) -> tuple[dict[str, slice], int]:
    """Where each field is in the packed integers, and how many these are."""
    found, at = {}, 0
    for name, size in layout.fields():
        found[name] = slice(at, at + size)
        at += -(-size // _ALIGN) * _ALIGN
    return found, at


class Packed:
    """One side of a copy: integers on the host, or the same on the device."""

    def __init__(self, memory: Tensor, layout: Layout) -> None:
        self.layout = layout
        self.places, self.size = _places(layout)
        self.memory = memory[: self.size]

    def ints(self, name: str) -> Tensor:
        return self.memory[self.places[name]]

    def longs(self, name: str) -> Tensor:
        return self.ints(name).view(torch.int64)

    def floats(self, name: str) -> Tensor:
        return self.ints(name).view(torch.float32)


class Seats:
    """What the host knows of each place in the device's tables.

    Args:
        count: sequences that may run at a time.
        width: blocks that a sequence may have.
    """

    def __init__(self, count: int, width: int, block_size: int) -> None:
        self.count, self.width, self._size = count, width, block_size
        self.tables = np.zeros((count + 1, width), np.int32)
        self._temperatures = np.zeros(count + 1, np.float32)
        self._top_p = np.ones(count + 1, np.float32)
        self._top_k = np.zeros(count + 1, np.int32)
        self._alike: tuple[list[int], list[tuple[int, list[int]]]] = ([], [])

    @property
    def nobody(self) -> int:
        """The seat of rows of padding."""
        return self.count

    def updates(self, chunks: list[Chunk]) -> tuple[list[int], list[int]]:
        """Flat places in the tables that changed, and what stands there now."""
        index: list[int] = []
        value: list[int] = []
        for chunk in chunks:
            seq, blocks = chunk.seq, chunk.blocks
            sent, count = seq.table_blocks, len(blocks)
            if sent == count:
                continue
            seat = seq.slot
            if not sent:
                params = seq.params
                self._temperatures[seat] = params.temperature
                self._top_p[seat], self._top_k[seat] = params.top_p, params.top_k
                self._alike = ([], [])
            new = [block if block >= 0 else 0 for block in blocks[sent:]]
            self.tables[seat, sent:count] = new
            base = seat * self.width
            index += range(base + sent, base + count)
            value += new
            seq.table_blocks = count
        return index, value

    def slots(self, seats: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Where the keys and values of tokens go."""
        size = self._size
        found: np.ndarray = self.tables[seats, positions // size] * size + positions % size
        return found

    def alike(self, seats: list[int], tile: int) -> tuple[list[int], list[int]] | None:
        """For rows of which some begin alike: the tokens that each shares, and the rows in tiles of
        `tile`, -1 where none; None where it is not worth it."""
        if seats != self._alike[0]:
            self._alike = (seats, self._groups(seats))
        groups = self._alike[1]
        if not groups:
            return None
        since, members = [0] * len(seats), []
        for tokens, rows in groups:
            for row in rows:
                since[row] = tokens
            members += rows + [-1] * (-len(rows) % tile)
        return since, members

    def members(self, batch: int, tile: int) -> int:
        """The most places that `alike` fills for a batch of this size."""
        return tile * (-(-batch // tile) + _GROUPS)

    def _groups(self, seats: list[int]) -> list[tuple[int, list[int]]]:
        by_first: dict[int, list[int]] = {}
        for row, first in enumerate(self.tables[seats, 0].tolist()):
            by_first.setdefault(first, []).append(row)
        found = []
        for rows in by_first.values():
            if len(rows) < _SHARED_BY:
                continue
            tables = self.tables[[seats[row] for row in rows]]
            same = (tables == tables[0]).all(0)
            blocks = self.width if same.all() else int(same.argmin())
            if blocks * self._size >= _SHARED_TOKENS:
                found.append((blocks * self._size, rows))
        found.sort(key=lambda group: -group[0] * len(group[1]))
        return found[:_GROUPS]

    def sampling(self, chosen: list[tuple[int, Chunk]], into: Packed) -> bool:
        """How the next token of each is chosen, at its row; whether any is filtered."""
        rows = [row for row, _ in chosen]
        seats = [chunk.seq.slot for _, chunk in chosen]
        temperatures, top_p = self._temperatures[seats], self._top_p[seats]
        top_k = self._top_k[seats]
        for target, values, rest in (
            (into.floats("temperatures"), temperatures, 0),
            (into.floats("top_p"), top_p, 1),
            (into.ints("top_k"), top_k, 0),
            (into.ints("said_by"), seats, -1),
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
    """What the only token of a chunk is, for the kernel `feed`."""
    token = chunk.tokens[0]
    return -1 - chunk.seq.slot if token == UNSAMPLED else token


def put(target: Tensor, values: Sequence[int] | np.ndarray, rest: int) -> None:
    """Values, and `rest` in the places of padding."""
    array, count = target.numpy(), len(values)
    array[:count] = values
    array[count:] = rest


__all__ = ["Layout", "Packed", "Seats", "fed", "put"]
