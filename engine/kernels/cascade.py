"""Decode attention of many sequences that begin alike: their common keys are read once.

The queries of all that share a beginning are the rows of one product over it; what each has of
its own is decoded as always, and both are merged by their log-sum-exp (Hydragen, Juravsky et al.
2024; FlashInfer's cascade inference, Ye et al. 2024).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.decode import TILE, Decodes, Parts, parts_of
from drawloom.engine.kernels.gpu_arch import HOPPER, capability, chained, follow, processors
from drawloom.engine.kernels.merge_partials import merge
from drawloom.engine.kernels.online_softmax import LOG2E, fold, settle

ROWS = 64


@triton.jit(do_not_specialize=["batch"])
def _shared(
    q, keys, values, partial, masses, tables, seats, since, members, scale,
    table_row, q_row, q_head, cache_block, cache_token, cache_head, heads, batch,
    GROUP: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, SIZE: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
    WIDEN: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    follow(CHAINED)
    first = tl.load(members + tl.program_id(0) * QUERIES)
    part, head = tl.program_id(1), tl.program_id(2)
    if first >= 0:
        rows, depth = tl.arange(0, ROWS), tl.arange(0, WIDE)
        inside = rows < QUERIES * GROUP
        row = tl.load(members + tl.program_id(0) * QUERIES + rows // GROUP, mask=inside, other=-1)
        live = row >= 0
        row = tl.maximum(row, 0).to(tl.int64)
        mine = head * GROUP + rows % GROUP
        mask = live[:, None] & (depth < DEPTH)[None, :]
        ask = tl.load(
            q + (row * q_row + mine * q_head)[:, None] + depth[None, :], mask=mask, other=0.0
        )
        if WIDEN:
            ask = ask.to(tl.float32)
        length = tl.load(since + first)
        size = tl.cdiv(tl.cdiv(length, PARTS), TILE) * TILE
        stop = tl.minimum(length, (part + 1) * size)
        table = tables + tl.load(seats + first).to(tl.int64) * table_row
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, WIDE), tl.float32)
        for at in range(part * size, stop, TILE):
            cols = at + tl.arange(0, TILE)
            real = cols < stop
            best, mass, total = fold(
                ask, best, mass, total, keys, values, table, cols, real, real[None, :],
                head * cache_head, depth, scale, cache_block, cache_token,
                DEPTH, WIDE, SIZE, True, WIDEN,
            )  # fmt: skip
        mean, log = settle(best, mass, total)
        where = (part * batch + row) * heads + mine
        tl.store(partial + where[:, None] * DEPTH + depth[None, :], mean, mask=mask)
        tl.store(masses + where, log, mask=live)


def queries(heads: int, kv_heads: int) -> int:
    """Sequences whose queries are one tile; `Decodes.members` is cut into such tiles."""
    return max(1, ROWS // (heads // kv_heads))


def room(
    tiles: int, batch: int, heads: int, kv_heads: int, depth: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Room for what shared beginnings come to, read in as many parts as keep the device busy."""
    pieces = min(16, max(1, 4 * processors() // (tiles * kv_heads)))
    shape = (pieces, batch, heads)
    return (
        torch.empty(*shape, depth, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
    )


def cascade(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    at: Decodes,
    parts: Parts,
    before: tuple[Tensor, Tensor],
    out: Tensor | None = None,
) -> Tensor:
    """As `decode`, for sequences of which some share their first `at.since` tokens.

    `before` has room for what comes of these: [N, B, heads, d] and [N, B, heads], float32; they are
    read in N parts. There is no sliding window.
    """
    assert at.since is not None and at.members is not None and not at.window
    assert keys.stride() == values.stride() and q.stride(2) == keys.stride(3) == 1
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    (batch, heads, depth), kv_heads = q.shape, keys.shape[2]
    group, wide = heads // kv_heads, queries(heads, kv_heads)
    pieces = before[0].shape[0]
    _shared[(at.members.shape[0] // wide, pieces, kv_heads)](
        q, keys, values, *before, at.tables, at.seats, at.since, at.members,
        depth**-0.5 * LOG2E, at.tables.stride(0), q.stride(0), q.stride(1),
        keys.stride(0), keys.stride(1), keys.stride(2), heads, batch,
        GROUP=group, DEPTH=depth, WIDE=max(16, triton.next_power_of_2(depth)), SIZE=keys.shape[1],
        QUERIES=wide, ROWS=max(ROWS, triton.next_power_of_2(group)), TILE=TILE, PARTS=pieces,
        WIDEN=triton.knobs.runtime.interpret,
        num_warps=4 if capability() >= HOPPER else 8, num_stages=3, **chained(),
    )  # fmt: skip
    parts_of(q, keys, values, at, parts, out, merged=False)
    merge(parts.partial, parts.mass, parts.offsets, *before, at.since, out)
    return out
