"""Copies of KV blocks: many into a buffer or out of one, or one over another (copy-on-write)."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _move(source, target, ids, words, OUT: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.load(ids + row).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    live = at < words
    if OUT:
        tl.store(target + row * words + at, tl.load(source + block * words + at, mask=live), live)
    else:
        tl.store(target + block * words + at, tl.load(source + row * words + at, mask=live), live)


def gather(store: Tensor, blocks: Tensor, out: Tensor) -> None:
    """Copy blocks of `store` into a buffer.

    Args:
        store: [N, ...], contiguous by block.
        blocks: [n] int32.
        out: [>= n, ...], written in the order of `blocks`.
    """
    words = store[0].numel()
    _move[(blocks.shape[0], triton.cdiv(words, 2048))](
        store, out, blocks, words, OUT=True, TILE=2048
    )


def scatter(store: Tensor, blocks: Tensor, data: Tensor) -> None:
    """Copy a buffer into blocks of `store`.

    Args:
        store: [N, ...], contiguous by block, written in place.
        blocks: [n] int32.
        data: [>= n, ...], in the order of `blocks`.
    """
    words = store[0].numel()
    _move[(blocks.shape[0], triton.cdiv(words, 2048))](
        data, store, blocks, words, OUT=False, TILE=2048
    )


@triton.jit
def _copy(store, pairs, block_words, run, head_words, TILE: tl.constexpr):
    pair = pairs + tl.program_id(0) * 3
    source, target = tl.load(pair).to(tl.int64), tl.load(pair + 1).to(tl.int64)
    words = tl.load(pair + 2) * run  # the first tokens of a head
    base = tl.program_id(1).to(tl.int64) * head_words
    for at in range(0, words, TILE):
        cols = at + tl.arange(0, TILE)
        value = tl.load(store + source * block_words + base + cols, mask=cols < words)
        tl.store(store + target * block_words + base + cols, value, mask=cols < words)


def copy(store: Tensor, pairs: Tensor) -> None:
    """Copy the first tokens of blocks over other blocks, in all layers and heads.

    Args:
        store: [N, layers, 2, kv_heads, size, d], contiguous, written in place.
        pairs: [n, 3] int32: source block, target block and tokens; no target is a source.
    """
    _, layers, two, heads, size, depth = store.shape
    _copy[(pairs.shape[0], layers * two * heads)](
        store,
        pairs,
        store.stride(0),
        depth,
        size * depth,
        TILE=min(2048, triton.next_power_of_2(size * depth)),
    )
