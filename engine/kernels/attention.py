"""Causal attention over a paged cache, for prefill and decode alike.

One program computes a few query tokens of one sequence for one key head: the queries of the
group that share the head are rows of one product, so a key is read once for all of them. Keys
are gathered through the block table; the softmax is computed online (FlashAttention-2, Dao 2023).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kernel(
    q, keys, values, out, tables, contexts, starts, scale, window, table_row,
    q_token, q_head, cache_block, cache_token, cache_head, out_token, out_head,
    GROUP: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, SIZE: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    batch, head = tl.program_id(0), tl.program_id(2)
    first = tl.program_id(1) * QUERIES
    begin = tl.load(starts + batch)
    count = tl.load(starts + batch + 1) - begin
    context = tl.load(contexts + batch)
    if first < count:
        rows, depth = tl.arange(0, ROWS), tl.arange(0, WIDE)
        token = first + rows // GROUP
        live = (token < count) & (rows < QUERIES * GROUP)
        deep = depth < DEPTH
        heads = head * GROUP + rows % GROUP
        place = (begin + token).to(tl.int64)
        mask = live[:, None] & deep[None, :]
        ask = tl.load(
            q + (place * q_token + heads * q_head)[:, None] + depth[None, :], mask=mask, other=0.0
        )
        if WIDEN:
            ask = ask.to(tl.float32)
        position = context - count + token
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, WIDE), tl.float32)
        end = tl.minimum(context, context - count + first + QUERIES)
        # from the tile with the oldest key that the first of these queries sees
        since = tl.maximum(0, context - count + first - window + 1) // TILE * TILE
        for start in range(since, end, TILE):
            cols = start + tl.arange(0, TILE)
            real = cols < context
            block = tl.load(tables + batch * table_row + cols // SIZE, mask=real, other=0)
            at = block.to(tl.int64) * cache_block + (cols % SIZE) * cache_token + head * cache_head
            k = tl.load(
                keys + at[None, :] + depth[:, None], mask=deep[:, None] & real[None, :], other=0.0
            )
            if WIDEN:
                k = k.to(tl.float32)
            score = tl.dot(ask, k, input_precision="ieee") * scale
            seen = (cols[None, :] <= position[:, None]) & real[None, :]
            seen = seen & (cols[None, :] > position[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
            top = tl.maximum(best, tl.max(score, 1))
            calm = tl.where(top == float("-inf"), 0.0, top)  # a row that saw nothing yet
            weight = tl.exp(score - calm[:, None])
            shrink = tl.exp(best - calm)
            v = tl.load(
                values + at[:, None] + depth[None, :], mask=real[:, None] & deep[None, :], other=0.0
            )
            if WIDEN:
                v = v.to(tl.float32)
            total = total * shrink[:, None]
            total += tl.dot(weight.to(v.dtype), v, input_precision="ieee")
            mass = mass * shrink + tl.sum(weight, 1)
            best = top
        mass = tl.where(mass == 0.0, 1.0, mass)  # a row of padding may have seen nothing
        result = (total / mass[:, None]).to(out.dtype.element_ty)
        where = (place * out_token + heads * out_head)[:, None] + depth[None, :]
        tl.store(out + where, result, mask=mask)


def attention(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, contexts: Tensor, starts: Tensor,
    longest: int, window: int = 0,
) -> Tensor:  # fmt: skip
    """`q` [T, heads, d], `keys` and `values` [blocks, size, kv_heads, d], `tables` [B, W] int32,
    `contexts` [B] int32, `starts` [B + 1] int32, `longest` the most query tokens of a sequence; a
    token sees the last `window` tokens, itself included, or all if it is 0.
    """
    assert keys.stride() == values.stride() and q.stride(2) == keys.stride(3) == 1
    depth, group = q.shape[2], q.shape[1] // keys.shape[2]
    queries = 1 if longest == 1 else max(1, 64 // group)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    grid = (contexts.shape[0], triton.cdiv(longest, queries), keys.shape[2])
    _kernel[grid](
        q, keys, values, out, tables, contexts, starts, depth**-0.5, window or 1 << 30,
        tables.stride(0),
        q.stride(0), q.stride(1), keys.stride(0), keys.stride(1), keys.stride(2),
        out.stride(0), out.stride(1),
        GROUP=group, DEPTH=depth, WIDE=max(16, triton.next_power_of_2(depth)), SIZE=keys.shape[1],
        QUERIES=queries, ROWS=max(16, triton.next_power_of_2(queries * group)), TILE=32,
        WIDEN=triton.knobs.runtime.interpret,  # its dot reads bfloat16 as integers
    )  # fmt: skip
    return out
