"""Decode attention over a paged cache, its keys split into parts of about equal length.

One query token a sequence leaves most of a GPU idle, and one long sequence keeps all others
waiting, if each is one program. So the keys of a batch are cut into parts, computed each on its
own and merged by their log-sum-exp (Flash-Decoding, Dao et al. 2023), in their order, by whichever
of a sequence is done last. How they are cut is decided on the device, once a step for all layers:
the grid never changes, so that a CUDA graph may hold it, and a sequence gets as many parts as its
length is worth (FlashInfer, Ye et al. 2024, §3.3). The query heads that share a key head are the
rows of one product: a key is read once for them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow, processors
from drawloom.engine.kernels.online_softmax import LOG2E, fold, settle
from drawloom.engine.kernels.tuning import DECODE

TILE = 64  # parts are so many keys long, or a multiple of it
LEAST = 128
CROWD = 64  # so many sequences leave no processor idle
SPARE = 3
RECORD = 8  # of a part: row, begin, end, seat, oldest key, the row's first part, its parts


@dataclass(slots=True)
class Decodes:
    """Where the KV of B decoding sequences is.

    Attributes:
        tables: [seats, W] int32, the blocks of each seat.
        seats: [B] int32, the seat of each row.
        contexts: [B] int32, tokens of each, the new one included; 0 is a row of padding.
        window: tokens that a token attends to, itself included; 0 is all.
        since: [B] int32, tokens at the beginning that `cascade` reads for many at once.
        members: [tiles * queries] int32, rows that share those tokens, tile by tile; -1 is none.
    """

    tables: Tensor
    seats: Tensor
    contexts: Tensor
    window: int = 0
    since: Tensor | None = None
    members: Tensor | None = None


@dataclass(slots=True)
class Parts:
    """Room for the parts of a step: where each begins and ends, and what came of it.

    `offsets` [B + 1] says whose they are; `records` [P, RECORD] have all that is to be known of
    each, so that a program knows it after one read (row -1 is no part); `partial` [P, heads, d] and
    `mass` [P, heads] (base-2 logarithms) are float32; `arrived` [B * heads] counts those that are
    done, and is zeros between steps.
    """

    offsets: Tensor
    records: Tensor
    partial: Tensor
    mass: Tensor
    arrived: Tensor

    @classmethod
    def room(cls, batch: int, heads: int, depth: int, parts: int, device: torch.device) -> "Parts":
        """For batches of up to `batch`; `parts` over and above one for each sequence."""
        count = batch + max(1, parts)

        def ints(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        partial = torch.empty(count, heads, depth, dtype=torch.float32, device=device)
        mass = torch.empty(count, heads, dtype=torch.float32, device=device)
        return cls(
            ints(batch + 1), ints(count * RECORD).view(count, RECORD), partial, mass,
            ints(batch * heads),
        )  # fmt: skip

    def of(self, batch: int, spare: int) -> "Parts":
        """Of this room, what a batch of this size needs."""
        count = min(batch + spare, self.records.shape[0])
        return Parts(
            self.offsets[: batch + 1], self.records[:count], self.partial[:count],
            self.mass[:count], self.arrived,
        )  # fmt: skip


def spare_parts(kv_heads: int, batch: int) -> int:
    """Parts, over one for each sequence: of few sequences as many as processors have at once; of
    many more, smaller ones, as these are seldom equally long."""
    return -(-(SPARE if batch < CROWD else 8) * processors() // kv_heads)


@triton.jit(do_not_specialize=["count", "parts"])
def _cut(
    contexts, seats, since, offsets, records, count, window, parts, minimum,
    SINCE: tl.constexpr, BATCH: tl.constexpr, TILE: tl.constexpr, WORK: tl.constexpr,
    RECORD: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    follow(CHAINED)
    rows = tl.arange(0, BATCH)
    live = rows < count
    context = tl.load(contexts + rows, mask=live, other=0)
    first = tl.maximum(0, context - window) // TILE * TILE
    if SINCE:
        first = tl.maximum(first, tl.load(since + rows, mask=live, other=0))
    length = tl.maximum(0, context - first)
    # sum over max(1, ceil(length / size)) <= sum(length) / size + count: all parts have room
    size = tl.cdiv(tl.cdiv(tl.sum(length, 0), parts - count), TILE) * TILE
    size = tl.maximum(size, minimum)
    # a row of padding has an empty part, which gives zeros
    pieces = tl.where(live, tl.maximum(1, tl.cdiv(length, size)), 0)
    ends = tl.cumsum(pieces, 0)
    if tl.program_id(0) == 0:
        tl.store(offsets + rows + 1, ends, mask=live)
        tl.store(offsets, 0)
    # a sequence's own parts are equal too
    even = tl.cdiv(tl.cdiv(length, tl.maximum(pieces, 1)), TILE) * TILE
    work = tl.program_id(0) * WORK + tl.arange(0, WORK)
    mine = tl.sum((ends[None, :] <= work[:, None]).to(tl.int32), 1)
    chosen = rows[None, :] == mine[:, None]
    seat = tl.load(seats + rows, mask=live, other=0)
    begin = tl.sum(tl.where(chosen, (ends - pieces)[None, :], 0), 1)
    step = tl.sum(tl.where(chosen, even[None, :], 0), 1)
    start = tl.sum(tl.where(chosen, first[None, :], 0), 1) + (work - begin) * step
    whole = tl.sum(tl.where(chosen, context[None, :], 0), 1)
    here, record = work < parts, records + work * RECORD
    tl.store(record, tl.where(work < tl.sum(pieces, 0), mine, -1), mask=here)
    tl.store(record + 1, start, mask=here)
    tl.store(record + 2, tl.minimum(start + step, whole), mask=here)
    tl.store(record + 3, tl.sum(tl.where(chosen, seat[None, :], 0), 1), mask=here)
    tl.store(record + 4, whole - window, mask=here)
    tl.store(record + 5, begin, mask=here)
    tl.store(record + 6, tl.sum(tl.where(chosen, pieces[None, :], 0), 1), mask=here)


def cut(at: Decodes, parts: Parts) -> None:
    """Divide the keys of a step into parts; good for all of its layers."""
    count, room = at.contexts.shape[0], parts.records.shape[0]
    has = at.since is not None
    _cut[(triton.cdiv(room, 16),)](
        at.contexts, at.seats, at.since if has else at.contexts, parts.offsets, parts.records,
        count, at.window or 1 << 30, room, LEAST,
        SINCE=has, BATCH=triton.next_power_of_2(count), TILE=TILE, WORK=16, RECORD=RECORD,
        num_warps=4, **chained(),
    )  # fmt: skip


@triton.jit
def _part(partial, masses, part, last, heads, mine, spots, mask, real, DEPTH: tl.constexpr):
    """What one part came to: base-2 logarithms [ROWS] and means [ROWS, WIDE]; other processors
    wrote it, so it is read past the first cache. Nothing from part `last` on."""
    there = tl.zeros_like(mine) + part < last
    area = tl.cast(part, tl.int64) * heads
    log = tl.load(
        masses + area + mine, mask=real & there, other=float("-inf"), cache_modifier=".cg"
    )
    value = tl.load(
        partial + area * DEPTH + spots, mask=mask & there[:, None], other=0.0, cache_modifier=".cg"
    )
    return log, value


@triton.jit
def _join(best, mass, total, log, value):
    top = tl.maximum(best, log)
    calm = tl.where(top == float("-inf"), 0.0, top)
    old, new = tl.exp2(best - calm), tl.exp2(log - calm)
    return top, mass * old + new, total * old[:, None] + value * new[:, None]


@triton.jit
def _joined(
    partial, masses, first, last, heads, mine, spots, mask, real,
    DEPTH: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The weighted mean [ROWS, WIDE] of parts, in their order; four are read at a time, as each
    read takes longer than all else."""
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, WIDE), tl.float32)
    for part in range(first, last, 4):
        a, w = _part(partial, masses, part, last, heads, mine, spots, mask, real, DEPTH)
        b, x = _part(partial, masses, part + 1, last, heads, mine, spots, mask, real, DEPTH)
        c, y = _part(partial, masses, part + 2, last, heads, mine, spots, mask, real, DEPTH)
        d, z = _part(partial, masses, part + 3, last, heads, mine, spots, mask, real, DEPTH)
        best, mass, total = _join(best, mass, total, a, w)
        best, mass, total = _join(best, mass, total, b, x)
        best, mass, total = _join(best, mass, total, c, y)
        best, mass, total = _join(best, mass, total, d, z)
    mean, _ = settle(best, mass, total)
    return mean


@triton.jit
def _decode(
    q, keys, values, out, tables, records, partial, masses, arrived, scale, table_row, q_row,
    q_head, cache_block, cache_token, cache_head, heads,
    GROUP: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, MERGE: tl.constexpr, WIDEN: tl.constexpr,
    RECORD: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    follow(CHAINED)
    part, head = tl.program_id(0), tl.program_id(1)
    record = records + part * RECORD
    row = tl.load(record)
    start, stop, seat = tl.load(record + 1), tl.load(record + 2), tl.load(record + 3)
    oldest, first, pieces = tl.load(record + 4), tl.load(record + 5), tl.load(record + 6)
    if row >= 0:
        rows, depth = tl.arange(0, ROWS), tl.arange(0, WIDE)
        mine = head * GROUP + rows
        real = rows < GROUP
        mask = real[:, None] & (depth < DEPTH)[None, :]
        ask = tl.load(
            q + row.to(tl.int64) * q_row + (mine * q_head)[:, None] + depth[None, :],
            mask=mask, other=0.0,
        )  # fmt: skip
        if WIDEN:
            ask = ask.to(tl.float32)
        table = tables + seat.to(tl.int64) * table_row
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, WIDE), tl.float32)
        for at in range(start, stop, TILE):
            cols = at + tl.arange(0, TILE)
            there = (cols < stop) & (cols >= oldest)
            best, mass, total = fold(
                ask, best, mass, total, keys, values, table, cols, there, there[None, :],
                head * cache_head, depth, scale, cache_block, cache_token,
                DEPTH, WIDE, SIZE, True, WIDEN,
            )  # fmt: skip
        mean, log = settle(best, mass, total)
        spots = mine[:, None] * DEPTH + depth[None, :]
        goal = out + row.to(tl.int64) * heads * DEPTH + spots
        if MERGE & (pieces == 1):
            tl.store(goal, mean.to(out.dtype.element_ty), mask=mask)
        else:
            area = part.to(tl.int64) * heads
            tl.store(partial + area * DEPTH + spots, mean, mask=mask)
            tl.store(masses + area + mine, log, mask=real)
            if MERGE:
                tl.debug_barrier()
                count = arrived + row * tl.num_programs(1) + head
                if tl.atomic_add(count, 1) == pieces - 1:
                    tl.store(count, 0)
                    mean = _joined(
                        partial, masses, first, first + pieces, heads, mine, spots, mask, real,
                        DEPTH, ROWS, WIDE,
                    )  # fmt: skip
                    tl.store(goal, mean.to(out.dtype.element_ty), mask=mask)


def decode(
    q: Tensor, keys: Tensor, values: Tensor, at: Decodes, parts: Parts, out: Tensor | None = None
) -> Tensor:
    """`q` [B, heads, d], `keys` and `values` [blocks, size, kv_heads, d] to [B, heads, d].

    `parts` were cut for this step. Scale is d ** -0.5. A row of padding gives zeros.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    parts_of(q, keys, values, at, parts, out, merged=True)
    return out


def parts_of(
    q: Tensor, keys: Tensor, values: Tensor, at: Decodes, parts: Parts, out: Tensor, merged: bool
) -> None:
    """What each part gives, `merged` into `out` or left in `parts`."""
    assert keys.stride() == values.stride() and q.stride(2) == keys.stride(3) == 1
    heads, depth = q.shape[1:]
    group = heads // keys.shape[2]
    tiling = DECODE.of((heads, keys.shape[2], depth, q.shape[0] >= CROWD))
    _decode[(parts.records.shape[0], keys.shape[2])](
        q, keys, values, out, at.tables, parts.records, parts.partial, parts.mass, parts.arrived,
        depth**-0.5 * LOG2E, at.tables.stride(0), q.stride(0), q.stride(1),
        keys.stride(0), keys.stride(1), keys.stride(2), heads,
        GROUP=group, DEPTH=depth, WIDE=max(16, triton.next_power_of_2(depth)), SIZE=keys.shape[1],
        ROWS=max(16, triton.next_power_of_2(group)), TILE=tiling.keys, MERGE=merged,
        WIDEN=triton.knobs.runtime.interpret,  # its dot reads bfloat16 as integers
        RECORD=RECORD, num_warps=tiling.warps, num_stages=tiling.stages, **chained(),
    )  # fmt: skip
