"""From a step's chunks to the integers that a device reads, padded to a shape that is captured.

Where every size is one of a few, a step can be one graph, whatever is in it: rows of padding belong
to nobody, have no context, and write to a block of their own. A step is padded unless it is large
(then launching it costs little beside computing it) or scores tokens.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch import Tensor

from drawloom.engine.core.step_plan import Chunk
from drawloom.engine.kernels import cascade, prefill
from drawloom.engine.runners.step_inputs import Layout, Packed, Seats, fed, put

_CHUNKS = (4, 16)
_TOKENS = (16, 64, 128, 256, 512)
_BESIDE = (0, 8, 32, 64, 128, 192, 256)
UPDATES = 1024


def decodes(chunk: Chunk) -> bool:
    """Whether it is the one token that a sequence said last, to say another."""
    return len(chunk.tokens) == 1 and chunk.score < 0 and chooses(chunk)


def chooses(chunk: Chunk) -> bool:
    """Whether a token is chosen behind it."""
    return chunk.sample and chunk.seq.params.max_tokens > 0


@dataclass(slots=True)
class Packing:
    """A step, packed.

    Attributes:
        host: its integers.
        padded: whether its layout is one of those that are captured.
        chosen: the row of each chunk behind which a token is chosen.
        scored: the chunks whose tokens are scored; their rows are the last, in this order.
        filtered: whether top-k or top-p is asked for.
        rest: changes of block tables that had no room: flat places, and what stands there.
    """

    host: Packed
    padded: bool
    chosen: list[tuple[int, Chunk]]
    scored: list[Chunk]
    filtered: bool
    rest: tuple[list[int], list[int]]


class Packer:
    """Packs steps of a model.

    Args:
        shape: its heads, key heads and their depth.
        spare: the place of a token that is nobody's.
        sizes: batches that are captured; others are padded to them.
        shares: whether what many begin with is read once; not behind a sliding window.
    """

    def __init__(
        self,
        seats: Seats,
        shape: tuple[int, int, int],
        spare: int,
        sizes: list[int],
        shares: bool,
    ) -> None:
        self.seats, self.sizes, self._shape = seats, sizes, shape
        self._spare, self.shares = spare, shares
        self.tile = cascade.queries(*shape[:2])
        self._beside = sorted({n for n in _BESIDE if n < sizes[-1]} | {sizes[-1]})

    def plain(self, size: int, members: int = 0) -> Layout:
        """Of a step in which all decode."""
        return Layout(size, size, 0, 0, size, size, max(16, size), members)

    def pack(self, chunks: list[Chunk], memory: Tensor) -> Packing:
        """Into `memory` of the host."""
        first = [c for c in chunks if decodes(c)]
        others = [c for c in chunks if not decodes(c)]
        scored = [c for c in others if c.scored]
        index, value = self.seats.updates(first + others)
        rows = [c.seq.slot for c in first]
        alike = None
        if others:
            layout, padded = self._mixed(len(first), others, scored, len(index))
        else:
            alike = self.seats.alike(rows, self.tile) if self.shares else None
            size, padded = next(s for s in self.sizes if s >= len(first)), True
            # one layout for all ways to be alike at this size
            members = 0 if alike is None else self.seats.members(size, self.tile)
            layout = self.plain(size, members)
        host, room = Packed(memory, layout), layout.updates
        self._put_decodes(host, first, rows)
        if alike is not None:
            put(host.ints("since"), alike[0], 0)
            put(host.ints("members"), alike[1], -1)
        if others:
            self._put_chunks(host, others)
        self._put_rows(host, others, scored)
        put(host.ints("index"), index[:room], -1)
        put(host.ints("value"), value[:room], 0)
        chosen = list(enumerate(first))
        chosen += [(layout.decoding + at, c) for at, c in enumerate(others) if chooses(c)]
        filtered = self.seats.sampling(chosen, host)
        return Packing(host, padded, chosen, scored, filtered, (index[room:], value[room:]))

    def _mixed(
        self, first: int, others: list[Chunk], scored: list[Chunk], updates: int
    ) -> tuple[Layout, bool]:
        count, tokens = len(others), sum(len(c.tokens) for c in others)
        if scored or tokens > _TOKENS[-1] or count >= _CHUNKS[-1]:
            longest = max(len(c.tokens) for c in others)
            size = prefill.queries(*self._shape, longest)
            tiles = sum(-(-len(c.tokens) // size) for c in others)
            more = sum(len(c.scored) for c in scored)
            total = first + tokens
            return Layout(
                total, first, count, tiles, first + count + more, first + count, updates, 0, size
            ), False
        first = next(n for n in self._beside if n >= first)
        tokens = next(n for n in _TOKENS if n >= tokens)
        count = next(n for n in _CHUNKS if n > count)  # one at least is padding
        size = prefill.queries(*self._shape, tokens)
        tiles = tokens // size + count
        rows = first + count
        return Layout(first + tokens, first, count, tiles, rows, rows, UPDATES, 0, size), True

    def _put_decodes(self, host: Packed, first: list[Chunk], seats: list[int]) -> None:
        places, rows = np.array([c.start for c in first], np.int32), np.array(seats, np.int32)
        put(host.ints("seats"), rows, self.seats.nobody)
        put(host.ints("contexts"), places + 1, 0)
        for name, values, rest in (
            ("ids", [fed(c) for c in first], 0),
            ("positions", places, 0),
            ("slots", self.seats.slots(rows, places), self._spare),
            ("says", rows, -1),
        ):
            put(host.ints(name)[: host.layout.decoding], values, rest)

    def _put_chunks(self, host: Packed, others: list[Chunk]) -> None:
        layout, lengths = host.layout, [len(c.tokens) for c in others]
        ids: list[int] = []
        for chunk in others:
            ids += chunk.tokens if len(chunk.tokens) > 1 else [fed(chunk)]
        places = np.concatenate([np.arange(c.start, c.end, dtype=np.int32) for c in others])
        seats = np.repeat(np.array([c.seq.slot for c in others], np.int32), lengths)
        says = np.full(len(ids), -1, np.int32)
        ends = np.cumsum(lengths) - 1
        says[ends] = [c.seq.slot if chooses(c) else -1 for c in others]
        for name, values, rest in (
            ("ids", ids, 0), ("positions", places, 0),
            ("slots", self.seats.slots(seats, places), self._spare), ("says", says, -1),
        ):  # fmt: skip
            put(host.ints(name)[layout.decoding :], values, rest)
        put(host.ints("chunk_seats"), [c.seq.slot for c in others], self.seats.nobody)
        put(host.ints("chunk_contexts"), [c.end for c in others], 0)
        if layout.chunks > len(others):  # one of padding has all tokens of padding
            lengths.append(layout.tokens - layout.decoding - len(ids))
        total = layout.tokens - layout.decoding
        put(host.ints("starts"), [0, *accumulate(lengths)], total)
        tiles = prefill.tiles(lengths, layout.queries)
        whose, first = host.ints("tiles").view(2, -1)
        put(whose, [row for row, _ in tiles], layout.chunks - 1)
        put(first, [at for _, at in tiles], total)

    def _put_rows(self, host: Packed, others: list[Chunk], scored: list[Chunk]) -> None:
        """The rows that come out of the last layer: of all that decode, of each chunk its last, and
        those that are scored."""
        layout = host.layout
        rows, at, begins = list(range(layout.decoding)), layout.decoding, {}
        for chunk in others:
            begins[chunk.seq.id] = at
            at += len(chunk.tokens)
            rows.append(at - 1)
        rows += [0] * (layout.chunks - len(others))
        for chunk in scored:
            first = begins[chunk.seq.id] + chunk.score
            rows += range(first, first + len(chunk.scored))
        put(host.ints("rows"), rows, 0)


__all__ = ["UPDATES", "Packer", "Packing", "chooses", "decodes"]
