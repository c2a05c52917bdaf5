"""Causal attention of many new tokens a sequence over a paged cache, what was there before
included.

One program computes a tile of query tokens of one sequence for one key head: the queries of the
group that share the head are rows of one product (at least 64, so that a Hopper multiplies by
warpgroups), and a key is read once for all of them. Which tile is whose is a list, so that a long
prompt beside many short ones starts no program in vain. Tiles of keys that every row sees are
folded without a mask (FlashAttention-2, Dao 2023).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow
from drawloom.engine.kernels.online_softmax import LOG2E, fold, settle
from drawloom.engine.kernels.tuning import PREFILL


@dataclass(slots=True)
class Prefills:
    """Query tokens of sequences, laid end to end, and where their KV is.

    Attributes:
        tables: [seats, W] int32, the blocks of each seat.
        seats: [B] int32, the seat of each sequence.
        contexts: [B] int32, tokens of each after this step; 0 is padding, which gives zeros.
        starts: [B + 1] int32, where the query tokens of each begin.
        tiles: [2, N] int32, the sequence of each tile of `queries` tokens, and its first one.
        window: tokens that a token attends to, itself included; 0 is all.
    """

    tables: Tensor
    seats: Tensor
    contexts: Tensor
    starts: Tensor
    tiles: Tensor
    window: int = 0


def queries(heads: int, kv_heads: int, depth: int, longest: int) -> int:
    """Query tokens of a tile, for sequences of at most `longest` of them."""
    group = heads // kv_heads
    rows: int = min(
        PREFILL.of((heads, kv_heads, depth)).rows, max(16, triton.next_power_of_2(longest * group))
    )
    return max(1, rows // group)


def tiles(lengths: list[int], size: int) -> list[tuple[int, int]]:
    """The tiles of `size` query tokens of each sequence; the last of a long one, which has most to
    read, first."""
    return [
        (row, first)
        for row, length in enumerate(lengths)
        for first in range((length - 1) // size * size, -1, -size)
    ]


@triton.jit(do_not_specialize=["count"])
def _prefill(
    q, keys, values, out, tables, seats, contexts, starts, tiles, scale, window, table_row, count,
    q_token, q_head, cache_block, cache_token, cache_head, out_token, out_head,
    GROUP: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, SIZE: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WINDOWED: tl.constexpr,
    WIDEN: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    follow(CHAINED)
    tile, head = tl.program_id(0), tl.program_id(1)
    batch, first = tl.load(tiles + tile), tl.load(tiles + count + tile)
    begin = tl.load(starts + batch)
    length = tl.load(starts + batch + 1) - begin
    context = tl.load(contexts + batch)
    table = tables + tl.load(seats + batch).to(tl.int64) * table_row
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
        # all of these see all before it; tokens of padding have no context at all
        whole = tl.maximum(0, context - length + first + 1) // TILE * TILE
        for at in range(0, whole, TILE):
            cols = at + tl.arange(0, TILE)
            real = cols < whole
            best, mass, total = fold(
                ask, best, mass, total, keys, values, table, cols, real, real[None, :], offset,
                depth, scale, cache_block, cache_token, DEPTH, WIDE, SIZE, False, WIDEN,
            )  # fmt: skip
        start = whole
    for at in range(start, end, TILE):
        cols = at + tl.arange(0, TILE)
        real = cols < context
        seen = (cols[None, :] <= position[:, None]) & real[None, :]
        if WINDOWED:
            real = real & (cols > context - length + first - window)
            seen = seen & (cols[None, :] > position[:, None] - window)
        best, mass, total = fold(
            ask, best, mass, total, keys, values, table, cols, real, seen, offset,
            depth, scale, cache_block, cache_token, DEPTH, WIDE, SIZE, True, WIDEN,
        )  # fmt: skip
    mean, _ = settle(best, mass, total)
    where = (place * out_token + heads * out_head)[:, None] + depth[None, :]
    tl.store(out + where, mean.to(out.dtype.element_ty), mask=mask)


def prefill(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    at: Prefills,
    size: int,
    out: Tensor | None = None,
) -> Tensor:
    """`q` [T, heads, d], `keys` and `values` [blocks, size, kv_heads, d] to [T, heads, d]; the
    tiles of `at` are of `size` tokens. Scale is d ** -0.5."""
    assert keys.stride() == values.stride() and q.stride(2) == keys.stride(3) == 1
    depth, group = q.shape[2], q.shape[1] // keys.shape[2]
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    rows = max(16, triton.next_power_of_2(size * group))
    tiling = PREFILL.of((q.shape[1], keys.shape[2], depth))
    _prefill[(at.tiles.shape[1], keys.shape[2])](
        q, keys, values, out, at.tables, at.seats, at.contexts, at.starts, at.tiles,
        depth**-0.5 * LOG2E, at.window or 1 << 30, at.tables.stride(0), at.tiles.shape[1],
        q.stride(0), q.stride(1), keys.stride(0), keys.stride(1), keys.stride(2),
        out.stride(0), out.stride(1),
        GROUP=group, DEPTH=depth, WIDE=max(16, triton.next_power_of_2(depth)), SIZE=keys.shape[1],
        QUERIES=size, ROWS=rows, TILE=tiling.keys, WINDOWED=at.window > 0,
        WIDEN=triton.knobs.runtime.interpret,  # its dot reads bfloat16 as integers
        num_warps=tiling.warps if rows == tiling.rows else 4, num_stages=tiling.stages,
        **chained(),
    )  # fmt: skip
    return out
