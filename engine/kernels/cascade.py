"""Cascade attention: decode many sequences with a common prefix, reading its keys once.

The queries of all sequences that share a prefix are the rows of one product over it. The rest of
each sequence is decoded as usual, and both results are merged by their log-sum-exp (Hydragen,
Juravsky et al. 2024; FlashInfer's cascade inference, Ye et al. 2024).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.decode import TILE, attend_parts
from drawloom.engine.kernels.gpu_arch import HOPPER, capability, chained, follow, processors
from drawloom.engine.kernels.merge_partials import merge
from drawloom.engine.kernels.online_softmax import LOG2E, fold, settle
from drawloom.engine.kernels.types import DecodeBatch, KeyParts

ROWS = 64


@triton.jit(do_not_specialize=["batch"])
def _shared(
    q,
    keys,
    values,
    partial,
    masses,
    tables,
    slots,
    lengths,
    members,
    scale,
    table_row,
    q_row,
    q_head,
    cache_block,
    cache_token,
    cache_head,
    heads,
    batch,
    GROUP: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    WIDEN: tl.constexpr,
    CHAINED: tl.constexpr,
):
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
        length = tl.load(lengths + first)
        size = tl.cdiv(tl.cdiv(length, PARTS), TILE) * TILE
        stop = tl.minimum(length, (part + 1) * size)
        table = tables + tl.load(slots + first).to(tl.int64) * table_row
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, WIDE), tl.float32)
        for at in range(part * size, stop, TILE):
            cols = at + tl.arange(0, TILE)
            real = cols < stop
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
        where = (part * batch + row) * heads + mine
        tl.store(partial + where[:, None] * DEPTH + depth[None, :], mean, mask=mask)
        tl.store(masses + where, log, mask=live)


def tile_rows(heads: int, kv_heads: int) -> int:
    """Return the sequences of one tile; `DecodeBatch.shared_rows` is cut into such tiles."""
    return max(1, ROWS // (heads // kv_heads))


def allocate_shared(
    tiles: int, batch: int, heads: int, kv_heads: int, depth: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Allocate partial results of shared prefixes, in as many parts as keep the device busy.

    Args:
        tiles: tiles of `DecodeBatch.shared_rows`.
        batch: rows of the batch.

    Returns:
        Means [N, B, heads, d] and base-2 logarithms of masses [N, B, heads], float32.
    """
    count = min(16, max(1, 4 * processors() // (tiles * kv_heads)))
    shape = (count, batch, heads)
    return (
        torch.empty(*shape, depth, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
    )


def cascade(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: DecodeBatch,
    parts: KeyParts,
    shared_parts: tuple[Tensor, Tensor],
    out: Tensor | None = None,
) -> Tensor:
    """Compute what `decode` computes, reading the keys of shared prefixes once.

    Args:
        q: [B, heads, d].
        keys: [blocks, size, kv_heads, d].
        values: alike.
        batch: where the KV of each row is; `shared_tokens` and `shared_rows` must be given, and
            there must be no sliding window.
        parts: the parts that `split_keys` made for this step.
        shared_parts: room for partial results of the prefixes, by `allocate_shared`.
        out: [B, heads, d] to write to; allocated if None.

    Returns:
        [B, heads, d]; zeros for padding rows.
    """
    assert batch.shared_tokens is not None and batch.shared_rows is not None and not batch.window
    assert keys.stride() == values.stride() and q.stride(2) == keys.stride(3) == 1
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    (count, heads, depth), kv_heads = q.shape, keys.shape[2]
    group, rows = heads // kv_heads, tile_rows(heads, kv_heads)
    pieces = shared_parts[0].shape[0]
    _shared[(batch.shared_rows.shape[0] // rows, pieces, kv_heads)](
        q,
        keys,
        values,
        *shared_parts,
        batch.tables,
        batch.slots,
        batch.shared_tokens,
        batch.shared_rows,
        depth**-0.5 * LOG2E,
        batch.tables.stride(0),
        q.stride(0),
        q.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        heads,
        count,
        GROUP=group,
        DEPTH=depth,
        WIDE=max(16, triton.next_power_of_2(depth)),
        SIZE=keys.shape[1],
        QUERIES=rows,
        ROWS=max(ROWS, triton.next_power_of_2(group)),
        TILE=TILE,
        PARTS=pieces,
        WIDEN=triton.knobs.runtime.interpret,
        num_warps=4 if capability() >= HOPPER else 8,
        num_stages=3,
        **chained(),
    )
    attend_parts(q, keys, values, batch=batch, parts=parts, out=out, merged=False)
    merge(parts, shared_parts, batch.shared_tokens, out)
    return out
