"""Decode attention over a paged cache, its keys split into parts of about equal length.

With one program a sequence, a batch of one query token each leaves most of a GPU idle, and one long
sequence delays all others. So the keys of a batch are split into parts, computed independently and
merged by their log-sum-exp (Flash-Decoding, Dao et al. 2023), always in the same order, by the
program that finishes a sequence's last part. The split is decided on the device, once a step for
all layers: the grid never changes, so that a CUDA graph can capture it, and the number of a
sequence's parts follows its length (FlashInfer, Ye et al. 2024, section 3.3). The query heads that
share a key head are the rows of one product, so each key is read once for all of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow, processors
from drawloom.engine.kernels.online_softmax import LOG2E, fold, settle
from drawloom.engine.kernels.tuning import DECODE
from drawloom.engine.kernels.types import RECORD, DecodeBatch, KeyParts

TILE = 64  # the length of a part, in keys, is a multiple of this
LEAST = 128  # keys of the shortest part
CROWD = 64  # a batch of this many sequences leaves no processor idle
SPARE, SPARE_CROWDED = 3, 8  # spare parts a processor


def spare_parts(kv_heads: int, batch: int) -> int:
    """Return how many parts a batch gets beyond one for each sequence.

    A small batch gets as many as the processors run at a time. A large one gets more and smaller
    parts, because its sequences are seldom equally long.
    """
    return -(-(SPARE if batch < CROWD else SPARE_CROWDED) * processors() // kv_heads)


@triton.jit(do_not_specialize=["count", "parts"])
def _split(
    contexts,
    slots,
    shared,
    offsets,
    records,
    count,
    window,
    parts,
    minimum,
    SHARED: tl.constexpr,
    BATCH: tl.constexpr,
    TILE: tl.constexpr,
    WORK: tl.constexpr,
    RECORD: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    rows = tl.arange(0, BATCH)
    live = rows < count
    context = tl.load(contexts + rows, mask=live, other=0)
    first = tl.maximum(0, context - window) // TILE * TILE
    if SHARED:
        first = tl.maximum(first, tl.load(shared + rows, mask=live, other=0))
    length = tl.maximum(0, context - first)
    # sum over max(1, ceil(length / size)) <= sum(length) / size + count: all parts have room
    size = tl.cdiv(tl.cdiv(tl.sum(length, 0), parts - count), TILE) * TILE
    size = tl.maximum(size, minimum)
    # a padding row has an empty part, which gives zeros
    pieces = tl.where(live, tl.maximum(1, tl.cdiv(length, size)), 0)
    ends = tl.cumsum(pieces, 0)
    if tl.program_id(0) == 0:
        tl.store(offsets + rows + 1, ends, mask=live)
        tl.store(offsets, 0)
    # the parts of one sequence are equal too
    even = tl.cdiv(tl.cdiv(length, tl.maximum(pieces, 1)), TILE) * TILE
    work = tl.program_id(0) * WORK + tl.arange(0, WORK)
    mine = tl.sum((ends[None, :] <= work[:, None]).to(tl.int32), 1)
    chosen = rows[None, :] == mine[:, None]
    slot = tl.load(slots + rows, mask=live, other=0)
    begin = tl.sum(tl.where(chosen, (ends - pieces)[None, :], 0), 1)
    step = tl.sum(tl.where(chosen, even[None, :], 0), 1)
    start = tl.sum(tl.where(chosen, first[None, :], 0), 1) + (work - begin) * step
    whole = tl.sum(tl.where(chosen, context[None, :], 0), 1)
    here, record = work < parts, records + work * RECORD
    tl.store(record, tl.where(work < tl.sum(pieces, 0), mine, -1), mask=here)
    tl.store(record + 1, start, mask=here)
    tl.store(record + 2, tl.minimum(start + step, whole), mask=here)
    tl.store(record + 3, tl.sum(tl.where(chosen, slot[None, :], 0), 1), mask=here)
    tl.store(record + 4, whole - window, mask=here)
    tl.store(record + 5, begin, mask=here)
    tl.store(record + 6, tl.sum(tl.where(chosen, pieces[None, :], 0), 1), mask=here)


def split_keys(batch: DecodeBatch, parts: KeyParts) -> None:
    """Split the keys of a step into parts, which all of its layers use."""
    count, room = batch.contexts.shape[0], parts.records.shape[0]
    shared = batch.shared_tokens
    _split[(triton.cdiv(room, 16),)](
        batch.contexts,
        batch.slots,
        batch.contexts if shared is None else shared,
        parts.offsets,
        parts.records,
        count,
        batch.window or 1 << 30,
        room,
        LEAST,
        SHARED=shared is not None,
        BATCH=triton.next_power_of_2(count),
        TILE=TILE,
        WORK=16,
        RECORD=RECORD,
        num_warps=4,
        **chained(),
    )


@triton.jit
def _part(partial, masses, part, last, heads, mine, spots, mask, real, DEPTH: tl.constexpr):
    """Load one part's result: base-2 logarithms of the mass [ROWS] and means [ROWS, WIDE].

    Another processor may have written it, so the first-level cache is bypassed. Parts from `last`
    on are empty.
    """
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
    partial,
    masses,
    first,
    last,
    heads,
    mine,
    spots,
    mask,
    real,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Compute the weighted mean [ROWS, WIDE] of parts, in their order.

    Four parts are loaded at a time, because the latency of a load exceeds everything else.
    """
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
    q,
    keys,
    values,
    out,
    tables,
    records,
    partial,
    masses,
    arrived,
    scale,
    table_row,
    q_row,
    q_head,
    cache_block,
    cache_token,
    cache_head,
    heads,
    GROUP: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    MERGE: tl.constexpr,
    WIDEN: tl.constexpr,
    RECORD: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    part, head = tl.program_id(0), tl.program_id(1)
    record = records + part * RECORD
    row = tl.load(record)
    start, stop, slot = tl.load(record + 1), tl.load(record + 2), tl.load(record + 3)
    oldest, first, pieces = tl.load(record + 4), tl.load(record + 5), tl.load(record + 6)
    if row >= 0:
        rows, depth = tl.arange(0, ROWS), tl.arange(0, WIDE)
        mine = head * GROUP + rows
        real = rows < GROUP
        mask = real[:, None] & (depth < DEPTH)[None, :]
        ask = tl.load(
            q + row.to(tl.int64) * q_row + (mine * q_head)[:, None] + depth[None, :],
            mask=mask,
            other=0.0,
        )
        if WIDEN:
            ask = ask.to(tl.float32)
        table = tables + slot.to(tl.int64) * table_row
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, WIDE), tl.float32)
        for at in range(start, stop, TILE):
            cols = at + tl.arange(0, TILE)
            there = (cols < stop) & (cols >= oldest)
            best, mass, total = fold(
                ask,
                best,
                mass,
                total,
                keys,
                values,
                table,
                cols,
                there,
                there[None, :],
                head * cache_head,
                depth,
                scale,
                cache_block,
                cache_token,
                DEPTH,
                WIDE,
                SIZE,
                True,
                WIDEN,
            )
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
                        partial,
                        masses,
                        first,
                        first + pieces,
                        heads,
                        mine,
                        spots,
                        mask,
                        real,
                        DEPTH,
                        ROWS,
                        WIDE,
                    )
                    tl.store(goal, mean.to(out.dtype.element_ty), mask=mask)


def decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: DecodeBatch,
    parts: KeyParts,
    out: Tensor | None = None,
) -> Tensor:
    """Compute attention of one new token a sequence, with scale d ** -0.5.

    Args:
        q: [B, heads, d].
        keys: [blocks, size, kv_heads, d].
        values: alike.
        batch: where the KV of each row is.
        parts: the parts that `split_keys` made for this step.
        out: [B, heads, d] to write to; allocated if None.

    Returns:
        [B, heads, d]; zeros for padding rows.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    attend_parts(q, keys, values, batch=batch, parts=parts, out=out, merged=True)
    return out


def attend_parts(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    batch: DecodeBatch,
    parts: KeyParts,
    out: Tensor,
    merged: bool,
) -> None:
    """Compute every part, and merge the results into `out` if `merged`."""
    assert keys.stride() == values.stride() and q.stride(2) == keys.stride(3) == 1
    heads, depth = q.shape[1:]
    group = heads // keys.shape[2]
    tiling = DECODE.of((heads, keys.shape[2], depth, q.shape[0] >= CROWD))
    _decode[(parts.records.shape[0], keys.shape[2])](
        q,
        keys,
        values,
        out,
        batch.tables,
        parts.records,
        parts.partial,
        parts.mass,
        parts.arrived,
        depth**-0.5 * LOG2E,
        batch.tables.stride(0),
        q.stride(0),
        q.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        heads,
        GROUP=group,
        DEPTH=depth,
        WIDE=max(16, triton.next_power_of_2(depth)),
        SIZE=keys.shape[1],
        ROWS=max(16, triton.next_power_of_2(group)),
        TILE=tiling.keys,
        MERGE=merged,
        WIDEN=triton.knobs.runtime.interpret,  # the interpreter's dot reads bfloat16 as integers
        RECORD=RECORD,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **chained(),
    )
