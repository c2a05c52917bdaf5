"""Online softmax over one tile of keys and values, shared by all attention kernels.

As in FlashAttention-2 (Dao 2023, algorithm 1), but in powers of two: scores are scaled by log2(e),
and the mass of a row is carried as its base-2 logarithm.
"""

import triton
import triton.language as tl

LOG2E = 1.4426950408889634


@triton.jit
def fold(
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
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Fold the keys at positions `cols` [TILE] into the running softmax of ROWS queries.

    Args:
        ask: [ROWS, WIDE], the queries.
        best: [ROWS], running maximum of the scores.
        mass: [ROWS], running sum of the weights.
        total: [ROWS, WIDE], running weighted sum of the values.
        table: the KV blocks of the sequence.
        real: [TILE], mask of existing keys; read only if MASKED.
        seen: [ROWS, TILE], mask of keys that a row attends to; read only if MASKED.
        offset: offset of the head within a token.

    Returns:
        The new `best`, `mass` and `total`.
    """
    if MASKED:
        block = tl.load(table + cols // SIZE, mask=real, other=0)
    else:
        block = tl.load(table + cols // SIZE)
    at = block.to(tl.int64) * cache_block + (cols % SIZE) * cache_token + offset
    if MASKED or DEPTH != WIDE:
        live = real[None, :] & (depth < DEPTH)[:, None]
        k = tl.load(keys + at[None, :] + depth[:, None], mask=live, other=0.0)
    else:
        k = tl.load(keys + at[None, :] + depth[:, None])
    if WIDEN:
        k = k.to(tl.float32)
    score = tl.dot(ask, k, input_precision="ieee") * scale
    if MASKED:
        score = tl.where(seen, score, float("-inf"))
    top = tl.maximum(best, tl.max(score, 1))
    calm = tl.where(top == float("-inf"), 0.0, top)  # a row that attended to no key yet
    weight = tl.exp2(score - calm[:, None])
    shrink = tl.exp2(best - calm)
    if MASKED or DEPTH != WIDE:
        live = real[:, None] & (depth < DEPTH)[None, :]
        v = tl.load(values + at[:, None] + depth[None, :], mask=live, other=0.0)
    else:
        v = tl.load(values + at[:, None] + depth[None, :])
    if WIDEN:
        v = v.to(tl.float32)
    total = total * shrink[:, None]
    total += tl.dot(weight.to(v.dtype), v, input_precision="ieee")
    return top, mass * shrink + tl.sum(weight, 1), total


@triton.jit
def settle(best, mass, total):
    """Return the weighted mean [ROWS, WIDE] and the base-2 logarithm of the mass [ROWS].

    A row that attended to no key gives zeros, and minus infinity.
    """
    empty = mass == 0.0
    safe = tl.where(empty, 1.0, mass)
    log = tl.where(empty, float("-inf"), tl.where(empty, 0.0, best) + tl.log2(safe))
    return total / safe[:, None], log
