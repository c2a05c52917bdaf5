"""Causal attention of many new tokens a sequence over a paged cache, with its earlier tokens.

One program computes a tile of query tokens of one sequence for one key head: the queries of the
group that share the head are rows of one product (at least 64, so that a Hopper multiplies by
warpgroups), and each key is read once for all of them. Tiles are listed, so that no idle program
starts when a long prompt is batched with short ones. Key tiles that every row attends to are folded
without a mask (FlashAttention-2, Dao 2023).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow
from drawloom.engine.kernels.online_softmax import LOG2E, fold, settle
from drawloom.engine.kernels.tuning import PREFILL
from drawloom.engine.kernels.types import PrefillBatch


def tile_queries(heads: int, kv_heads: int, depth: int, longest: int) -> int:
    """Return the query tokens of a tile, for sequences of at most `longest` new tokens."""
    group = heads // kv_heads
    rows: int = min(
        PREFILL.of((heads, kv_heads, depth)).rows, max(16, triton.next_power_of_2(longest * group))
    )
    return max(1, rows // group)


def tiles(lengths: list[int], size: int) -> list[tuple[int, int]]:
    """Cut sequences into tiles of `size` query tokens: the sequence and first token of each.

    The last tile of a sequence, which reads the most keys, comes first.
    """
    return [
        (row, first)
        for row, length in enumerate(lengths)
        for first in range((length - 1) // size * size, -1, -size)
    ]


@triton.jit(do_not_specialize=["count"])
def _prefill(
    q,
    keys,
    values,
    out,
    tables,
    slots,
    contexts,
    starts,
    tiles,
    scale,
    window,
    table_row,
    count,
    q_token,
    q_head,
    cache_block,
    cache_token,
    cache_head,
    out_token,
    out_head,
    GROUP: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    WINDOWED: tl.constexpr,
    WIDEN: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    tile, head = tl.program_id(0), tl.program_id(1)
    batch, first = tl.load(tiles + tile), tl.load(tiles + count + tile)
    begin = tl.load(starts + batch)
    length = tl.load(starts + batch + 1) - begin
    context = tl.load(contexts + batch)
    table = tables + tl.load(slots + batch).to(tl.int64) * table_row
    rows, depth = tl.arange(0, ROWS), tl.arange(0, WIDE)
    token = first + rows // GROUP
    live = (token < length) & (rows < QUERIES * GROUP)
    heads = head * GROUP + rows % GROUP
    place = (begin + token).to(tl.int64)
    mask = live[:, None] & (depth < DEPTH)[None, :]
    ask = tl.load(
        q + (place * q_token + heads * q_head)[:, None] + depth[None, :], mask=mask, other=0.0
    )
    if WIDEN:
        ask = ask.to(tl.float32)
    position = context - length + token
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, WIDE), tl.float32)
    offset = head * cache_head
    end = tl.minimum(context, context - length + first + QUERIES)
    start = 0
    if WINDOWED:  # from the tile with the oldest key that the first of these queries sees
        start = tl.maximum(0, context - length + first - window + 1) // TILE * TILE
    else:
        # all rows attend to the keys before `whole`; padding has no context at all
        whole = tl.maximum(0, context - length + first + 1) // TILE * TILE
        for at in range(0, whole, TILE):
            cols = at + tl.arange(0, TILE)
            real = cols < whole
            best, mass, total = fold(
                ask,
                best,
                mass,
                total,
                keys,
                values,
                table,
                cols,
                real,
                real[None, :],
                offset,
                depth,
                scale,
                cache_block,
                cache_token,
                DEPTH,
                WIDE,
                SIZE,
                False,
                WIDEN,
            )
        start = whole
    for at in range(start, end, TILE):
        cols = at + tl.arange(0, TILE)
        real = cols < context
        seen = (cols[None, :] <= position[:, None]) & real[None, :]
        if WINDOWED:
            real = real & (cols > context - length + first - window)
            seen = seen & (cols[None, :] > position[:, None] - window)
        best, mass, total = fold(
            ask,
            best,
            mass,
            total,
            keys,
            values,
            table,
            cols,
            real,
            seen,
            offset,
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
    mean, _ = settle(best, mass, total)
    where = (place * out_token + heads * out_head)[:, None] + depth[None, :]
    tl.store(out + where, mean.to(out.dtype.element_ty), mask=mask)


def prefill(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: PrefillBatch,
    size: int,
    out: Tensor | None = None,
) -> Tensor:
    """Compute causal attention of chunks of tokens, with scale d ** -0.5.

    Args:
        q: [T, heads, d].
        keys: [blocks, block_size, kv_heads, d].
        values: alike.
        batch: where the queries and the KV of each sequence are.
        size: query tokens of a tile of `batch`, by `tile_queries`.
        out: [T, heads, d] to write to; allocated if None.

    Returns:
        [T, heads, d].
    """
    assert keys.stride() == values.stride() and q.stride(2) == keys.stride(3) == 1
    depth, group = q.shape[2], q.shape[1] // keys.shape[2]
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    rows = max(16, triton.next_power_of_2(size * group))
    tiling = PREFILL.of((q.shape[1], keys.shape[2], depth))
    _prefill[(batch.tiles.shape[1], keys.shape[2])](
        q,
        keys,
        values,
        out,
        batch.tables,
        batch.slots,
        batch.contexts,
        batch.starts,
        batch.tiles,
        depth**-0.5 * LOG2E,
        batch.window or 1 << 30,
        batch.tables.stride(0),
        batch.tiles.shape[1],
        q.stride(0),
        q.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        out.stride(0),
        out.stride(1),
        GROUP=group,
        DEPTH=depth,
        WIDE=max(16, triton.next_power_of_2(depth)),
        SIZE=keys.shape[1],
        QUERIES=size,
        ROWS=rows,
        TILE=tiling.keys,
        WINDOWED=batch.window > 0,
        WIDEN=triton.knobs.runtime.interpret,  # the interpreter's dot reads bfloat16 as integers
        num_warps=tiling.warps if rows == tiling.rows else 4,
        num_stages=tiling.stages,
        **chained(),
    )
    return out
