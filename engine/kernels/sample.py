"""Sampling of each row's next token in one kernel: temperature, top-k, top-p, Gumbel noise.

The noise is that of `engine/runners/sampler.py`: a counter-based generator keyed by (seed,
conversation, position) and the token's id, so that a row samples the same token in any batch and on
any device. A row is cut into pieces that run in parallel. Each packs its best value and token into
one integer, ordered by the value, and an atomic maximum combines them in any order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.types import SamplingRows

NONE = -(1 << 63)
_SEARCHED = 4096


@triton.jit
def _ordered(x):
    """Map floats to integers of the same order."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # no negative zero
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _noise(key, cols):
    x = key + (cols.to(tl.int64) + 1) * -7046029254386353131  # splitmix64: 0x9E3779B97F4A7C15
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
    x = x ^ ((x >> 31) & 0x1FFFFFFFF)
    uniform = (((x >> 11) & 0x1FFFFFFFFFFFFF).to(tl.float64) + 0.5) * 1.1102230246251565e-16
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit
def _tally(base, width, least, peak, temperature, edge, share, TILE: tl.constexpr):
    """Count the tokens from `least` up in order, and sum their weights.

    Tokens below `edge` weigh nothing, and those at `edge` only a `share` of their weight.
    """
    count = 0
    mass = 0.0
    for at in range(0, width, TILE):
        cols = at + tl.arange(0, TILE)
        x = tl.load(base + cols, mask=cols < width, other=float("-inf")).to(tl.float32)
        order = _ordered(x)
        chosen = (order.to(tl.int64) >= least) & (cols < width)
        weight = tl.exp((x - peak) / temperature)
        weight = tl.where(order > edge, weight, tl.where(order == edge, weight * share, 0.0))
        count += tl.sum(chosen.to(tl.int32), 0)
        mass += tl.sum(tl.where(chosen, weight, 0.0), 0)
    return count, mass


@triton.jit
def _floor(base, width, k, p, temperature, TILE: tl.constexpr):
    """Find the lowest value that top-k and then top-p keep, and how many of its ties."""
    peak = float("-inf")
    for at in range(0, width, TILE):
        cols = at + tl.arange(0, TILE)
        x = tl.load(base + cols, mask=cols < width, other=float("-inf")).to(tl.float32)
        peak = tl.maximum(peak, tl.max(x, 0))
    nothing = -(1 << 31)
    edge, spare, share = nothing, width, 1.0
    low = tl.full((), -(1 << 31), tl.int64)
    high = _ordered(peak).to(tl.int64) + 1
    if (k > 0) & (k < width):
        while high - low > 1:
            middle = (low + high) >> 1
            count, _ = _tally(base, width, middle, peak, temperature, nothing, 1.0, TILE)
            low, high = tl.where(count >= k, middle, low), tl.where(count >= k, high, middle)
        at_least, _ = _tally(base, width, low, peak, temperature, nothing, 1.0, TILE)
        above, _ = _tally(base, width, low + 1, peak, temperature, nothing, 1.0, TILE)
        edge, spare = low.to(tl.int32), k - above
        share = tl.cast(spare, tl.float32) / tl.cast(at_least - above, tl.float32)
    if p < 1.0:
        _, whole = _tally(base, width, nothing, peak, temperature, edge, share, TILE)
        low = tl.full((), -(1 << 31), tl.int64)
        high = _ordered(peak).to(tl.int64) + 1
        while high - low > 1:
            middle = (low + high) >> 1
            _, mass = _tally(base, width, middle, peak, temperature, edge, share, TILE)
            full = mass >= p * whole
            low, high = tl.where(full, middle, low), tl.where(full, high, middle)
        at_least, mass = _tally(base, width, low, peak, temperature, edge, share, TILE)
        above, over = _tally(base, width, low + 1, peak, temperature, edge, share, TILE)
        each = (mass - over) / tl.cast(tl.maximum(at_least - above, 1), tl.float32)
        each = tl.where(low == tl.cast(edge, tl.int64), each / share, each)
        wanted = tl.ceil((p * whole - over) / tl.maximum(each, 1e-38))
        wanted = tl.minimum(tl.maximum(wanted, 1.0), 1e9).to(tl.int32)
        spare = tl.where(low == tl.cast(edge, tl.int64), tl.minimum(spare, wanted), wanted)
        edge = low.to(tl.int32)
    return edge, spare


@triton.jit(do_not_specialize=["piece"])
def _sample(
    logits,
    picked,
    slots,
    temperatures,
    keys,
    top_k,
    top_p,
    width,
    stride,
    piece,
    FILTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row)
    if slot >= 0:
        base = logits + row * stride
        temperature = tl.load(temperatures + row)
        key = tl.load(keys + row)
        start = split * piece
        stop = tl.minimum(width, start + piece)
        edge, spare = -(1 << 31), width
        if FILTERED:
            k, p = tl.load(top_k + row), tl.load(top_p + row)
            if (temperature > 0.0) & ((k > 0) | (p < 1.0)):
                # ties are counted from the first token on, so one piece handles the whole row
                start = tl.where(split == 0, 0, width)
                stop = width
                if split == 0:
                    edge, spare = _floor(base, width, k, p, temperature, TILE)
        best, choice, ties, bad = float("-inf"), 0, 0, 0
        for at in range(start, stop, TILE):
            cols = at + tl.arange(0, TILE)
            live = cols < stop
            x = tl.load(base + cols, mask=live, other=float("-inf")).to(tl.float32)
            bad += tl.sum((x != x).to(tl.int32), 0)
            value = x
            if temperature > 0.0:
                value = x / temperature + _noise(key, cols)
            if FILTERED:
                order = _ordered(x)
                tie = (order == edge) & live
                keep = (order > edge) | (tie & (ties + tl.cumsum(tie.to(tl.int32), 0) <= spare))
                ties += tl.sum(tie.to(tl.int32), 0)
                value = tl.where(keep, value, float("-inf"))
            value = tl.where(live, value, float("-inf"))
            top, index = tl.max(value, 0, return_indices=True)
            choice = tl.where(top > best, at + index, choice)
            best = tl.maximum(best, top)
        if start < stop:
            offer = (_ordered(best).to(tl.int64) << 32) | tl.cast(0x7FFFFFFF - choice, tl.int64)
            offer = tl.where(bad > 0, 0x7FFFFFFF7FFFFFFF, offer)  # NaN wins over all numbers
            tl.atomic_max(picked + slot, offer)


def sample(logits: Tensor, picked: Tensor, how: SamplingRows) -> None:
    """Sample one token from each row of logits.

    Args:
        logits: [R, V], any float type.
        picked: [slots] int64, written: the pick of row r goes to ``how.slots[r]``, where `NONE`
            must have been. `picked_tokens` and `picked_token` decode it.
        how: temperature, noise and filters of each row.
    """
    rows, width = logits.shape
    # 128 pieces in all keep the processors busy, and a piece is at least a tile
    pieces = max(1, min(triton.cdiv(width, _SEARCHED), 128 // max(1, rows)))
    piece = triton.cdiv(triton.cdiv(width, pieces), _SEARCHED) * _SEARCHED
    _sample[(rows, triton.cdiv(width, piece))](
        logits,
        picked,
        how.slots,
        how.temperatures,
        how.keys,
        how.top_k,
        how.top_p,
        width,
        logits.stride(0),
        piece,
        FILTERED=how.filtered,
        TILE=min(_SEARCHED, triton.next_power_of_2(width)),
        num_warps=8,
    )


def picked_tokens(picked: Tensor) -> Tensor:
    """Return the token ids of picks."""
    return 0x7FFFFFFF - (picked & 0xFFFFFFFF)


def picked_token(picked: int) -> int:
    """Return the token id of a pick."""
    return 0x7FFFFFFF - (picked & 0xFFFFFFFF)


def is_finite(picked: int) -> bool:
    """Return whether the picked token's logit is a finite number.

    It is not if the row held NaN or infinity, or if every token was masked. The pick is then token
    0, which the next step can compute.
    """
    return -0x7F800001 < picked >> 32 < 0x7F800000


def no_picks(slots: int, device: torch.device) -> Tensor:
    """Allocate [slots] int64 picks for `sample`, all `NONE`."""
    return torch.full((slots,), NONE, dtype=torch.int64, device=device)
