"""Packing of a step's chunks into the integers that a device reads, padded to a captured shape.

If every size takes one of a few values, any step can be one graph. Padding rows belong to a slot of
their own, have no context, and write to a KV block of their own. A step is padded unless it scores
tokens or is large, as launching a large step costs little in comparison with computing it.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch import Tensor

from drawloom.engine.core.step_plan import Chunk
from drawloom.engine.kernels import cascade, prefill
from drawloom.engine.runners.step_inputs import Packed, SlotTable, StepShape, fed, put

# sizes that a mixed step is padded to: chunks, their tokens, and decoding sequences
_CHUNKS = (4, 16)
_TOKENS = (16, 64, 128, 256, 512)
_DECODING = (0, 8, 32, 64, 128, 192, 256)
UPDATES = 1024  # changed table entries of a padded step; the rest is uploaded by itself


def decodes(chunk: Chunk) -> bool:
    """Return whether a chunk is one token behind which the next is sampled."""
    return len(chunk.tokens) == 1 and chunk.score < 0 and chooses(chunk)


def chooses(chunk: Chunk) -> bool:
    """Return whether a token is sampled behind a chunk."""
    return chunk.sample and chunk.seq.params.max_tokens > 0


@dataclass(slots=True)
class Packing:
    """Hold a packed step.

    Attributes:
        host: the integers, on the host.
        padded: the shape is one of those that are captured.
        chosen: row and chunk of each token to sample.
        scored: the chunks whose tokens are scored; their rows are the last, in this order.
        filtered: some row asks for top-k or top-p.
        rest: table changes that did not fit: flat indices and values.
    """

    host: Packed
    padded: bool
    chosen: list[tuple[int, Chunk]]
    scored: list[Chunk]
    filtered: bool
    rest: tuple[list[int], list[int]]


class Packer:
    """Pack the steps of a model.

    Args:
        slots: the host's mirror of the device's tables.
        heads: heads, key heads and their depth.
        padding_kv: the KV slot that padding tokens write to.
        sizes: batch sizes that are captured; others are padded to them.
        cascades: use cascade attention for shared prefixes; impossible with a sliding window.
    """

    def __init__(
        self,
        slots: SlotTable,
        heads: tuple[int, int, int],
        padding_kv: int,
        sizes: list[int],
        cascades: bool,
    ) -> None:
        self.slots, self.sizes, self._heads = slots, sizes, heads
        self._padding_kv, self.cascades = padding_kv, cascades
        self.tile_rows = cascade.tile_rows(*heads[:2])
        self._decoding = sorted({n for n in _DECODING if n < sizes[-1]} | {sizes[-1]})

    def plain(self, size: int, shared_rows: int = 0) -> StepShape:
        """Return the shape of a decode step of `size` sequences."""
        return StepShape(
            tokens=size,
            decoding=size,
            chunks=0,
            tiles=0,
            rows=size,
            sampled=size,
            updates=max(16, size),
            shared_rows=shared_rows,
        )

    def pack(self, chunks: list[Chunk], memory: Tensor) -> Packing:
        """Pack a step into `memory` [>= size] int32 of the host."""
        first = [c for c in chunks if decodes(c)]
        others = [c for c in chunks if not decodes(c)]
        scored = [c for c in others if c.scored]
        index, value = self.slots.updates(first + others)
        rows = [c.seq.slot for c in first]
        groups = None
        if others:
            shape, padded = self._mixed(len(first), others, scored, len(index))
        else:
            groups = (
                self.slots.shared_prefix_groups(rows, self.tile_rows) if self.cascades else None
            )
            size, padded = next(s for s in self.sizes if s >= len(first)), True
            # one shape for all groupings at this size
            shared_rows = 0 if groups is None else self.slots.max_shared_rows(size, self.tile_rows)
            shape = self.plain(size, shared_rows)
        host, room = Packed(memory, shape), shape.updates
        self._put_decodes(host, first, rows)
        if groups is not None:
            put(host.ints("shared_tokens"), groups[0], 0)
            put(host.ints("shared_rows"), groups[1], -1)
        if others:
            self._put_chunks(host, others)
        self._put_rows(host, others, scored)
        put(host.ints("index"), index[:room], -1)
        put(host.ints("value"), value[:room], 0)
        chosen = list(enumerate(first))
        chosen += [(shape.decoding + at, c) for at, c in enumerate(others) if chooses(c)]
        filtered = self.slots.put_sampling(chosen, host)
        return Packing(host, padded, chosen, scored, filtered, (index[room:], value[room:]))

    def _mixed(
        self, first: int, others: list[Chunk], scored: list[Chunk], updates: int
    ) -> tuple[StepShape, bool]:
        count, tokens = len(others), sum(len(c.tokens) for c in others)
        if scored or tokens > _TOKENS[-1] or count >= _CHUNKS[-1]:
            longest = max(len(c.tokens) for c in others)
            size = prefill.tile_queries(*self._heads, longest)
            tiles = sum(-(-len(c.tokens) // size) for c in others)
            more = sum(len(c.scored) for c in scored)
            total = first + tokens
            return StepShape(
                tokens=total,
                decoding=first,
                chunks=count,
                tiles=tiles,
                rows=first + count + more,
                sampled=first + count,
                updates=updates,
                shared_rows=0,
                tile_queries=size,
            ), False
        first = next(n for n in self._decoding if n >= first)
        tokens = next(n for n in _TOKENS if n >= tokens)
        count = next(n for n in _CHUNKS if n > count)  # at least one is padding
        size = prefill.tile_queries(*self._heads, tokens)
        tiles = tokens // size + count
        rows = first + count
        return StepShape(
            tokens=first + tokens,
            decoding=first,
            chunks=count,
            tiles=tiles,
            rows=rows,
            sampled=rows,
            updates=UPDATES,
            shared_rows=0,
            tile_queries=size,
        ), True

    def _put_decodes(self, host: Packed, first: list[Chunk], slots: list[int]) -> None:
        positions, rows = np.array([c.start for c in first], np.int32), np.array(slots, np.int32)
        put(host.ints("slots"), rows, self.slots.padding_slot)
        put(host.ints("contexts"), positions + 1, 0)
        for name, values, rest in (
            ("ids", [fed(c) for c in first], 0),
            ("positions", positions, 0),
            ("kv_slots", self.slots.kv_slots(rows, positions), self._padding_kv),
            ("clear_slots", rows, -1),
        ):
            put(host.ints(name)[: host.shape.decoding], values, rest)

    def _put_chunks(self, host: Packed, others: list[Chunk]) -> None:
        shape, lengths = host.shape, [len(c.tokens) for c in others]
        ids: list[int] = []
        for chunk in others:
            ids += chunk.tokens if len(chunk.tokens) > 1 else [fed(chunk)]
        positions = np.concatenate([np.arange(c.start, c.end, dtype=np.int32) for c in others])
        slots = np.repeat(np.array([c.seq.slot for c in others], np.int32), lengths)
        cleared = np.full(len(ids), -1, np.int32)
        ends = np.cumsum(lengths) - 1
        cleared[ends] = [c.seq.slot if chooses(c) else -1 for c in others]
        for name, values, rest in (
            ("ids", ids, 0),
            ("positions", positions, 0),
            ("kv_slots", self.slots.kv_slots(slots, positions), self._padding_kv),
            ("clear_slots", cleared, -1),
        ):
            put(host.ints(name)[shape.decoding :], values, rest)
        put(host.ints("chunk_slots"), [c.seq.slot for c in others], self.slots.padding_slot)
        put(host.ints("chunk_contexts"), [c.end for c in others], 0)
        if shape.chunks > len(others):  # one padding chunk has all padding tokens
            lengths.append(shape.tokens - shape.decoding - len(ids))
        total = shape.tokens - shape.decoding
        put(host.ints("starts"), [0, *accumulate(lengths)], total)
        tiles = prefill.tiles(lengths, shape.tile_queries)
        owners, first = host.ints("tiles").view(2, -1)
        put(owners, [row for row, _ in tiles], shape.chunks - 1)
        put(first, [at for _, at in tiles], total)

    def _put_rows(self, host: Packed, others: list[Chunk], scored: list[Chunk]) -> None:
        """Write the rows that leave the last layer.

        These are all decoding rows, the last token of each chunk, and the tokens to score.
        """
        shape = host.shape
        rows, at, begins = list(range(shape.decoding)), shape.decoding, {}
        for chunk in others:
            begins[chunk.seq.id] = at
            at += len(chunk.tokens)
            rows.append(at - 1)
        rows += [0] * (shape.chunks - len(others))
        for chunk in scored:
            first = begins[chunk.seq.id] + chunk.score
            rows += range(first, first + len(chunk.scored))
        put(host.ints("rows"), rows, 0)


__all__ = ["UPDATES", "Packer", "Packing", "chooses", "decodes"]
