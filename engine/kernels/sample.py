"""Choosing the next token of each row, in one kernel: temperature, top-k, top-p and Gumbel noise.

The noise is that of `engine/runners/sampler.py`: a counter-based generator keyed by (seed,
conversation, position) and the token's id, so that a row says the same in any batch and on any
device. A row is cut into pieces that run side by side; each offers its best token, as one integer
that is greater where the value is, to an atomic maximum: no order of the pieces matters.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NONE = -(1 << 63)
_SEARCHED = 4096


@triton.jit
def _ordered(x):
    """Integers in the order of the floats."""
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
    """How many tokens are at least `least` in order, and what they weigh; those at `edge` weigh
    only a `share` of it."""
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
    """The least token, in order, that top-k and then top-p keep, and how many equal to it."""
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
    logits, picked, seats, temperatures, keys, top_k, top_p, width, stride, piece,
    FILTERED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    seat = tl.load(seats + row)
    if seat >= 0:
        base = logits + row * stride
        temperature = tl.load(temperatures + row)
        key = tl.load(keys + row)
        start = split * piece
        stop = tl.minimum(width, start + piece)
        edge, spare = -(1 << 31), width
        if FILTERED:
            k, p = tl.load(top_k + row), tl.load(top_p + row)
            if (temperature > 0.0) & ((k > 0) | (p < 1.0)):
                # ties are counted from the first token on: one piece does it all
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
            offer = tl.where(bad > 0, 0x7FFFFFFF7FFFFFFF, offer)  # greater than any number
            tl.atomic_max(picked + seat, offer)


def sample(
    logits: Tensor,
    picked: Tensor,
    seats: Tensor,
    temperatures: Tensor,
    keys: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    filtered: bool,
) -> None:
    """One token for each of R rows of `logits` [R, V], into `picked` [seats] int64, where it is
    told by `tokens`; `seats` [R] int32 says where, -1 is a row of padding. Where it goes must be
    `NONE` before.

    `temperatures` [R] float32 (0 is greedy), `keys` [R] int64 of the noise, `top_k` [R] int32 (0 is
    all), `top_p` [R] float32; the last two are read only if `filtered`.
    """
    rows, width = logits.shape
    # 64 pieces in all keep half of the processors busy, and a piece is at least a tile
    pieces = max(1, min(triton.cdiv(width, _SEARCHED), 128 // max(1, rows)))
    piece = triton.cdiv(triton.cdiv(width, pieces), _SEARCHED) * _SEARCHED
    _sample[(rows, triton.cdiv(width, piece))](
        logits, picked, seats, temperatures, keys, top_k, top_p, width, logits.stride(0), piece,
        FILTERED=filtered, TILE=min(_SEARCHED, triton.next_power_of_2(width)), num_warps=8,
    )  # fmt: skip


def tokens(picked: Tensor) -> Tensor:
    """The token ids that were picked."""
    return 0x7FFFFFFF - (picked & 0xFFFFFFFF)


def unpack(picked: int) -> int:
    """The token id that was picked."""
    return 0x7FFFFFFF - (picked & 0xFFFFFFFF)


def chosen(picked: int) -> bool:
    """Whether a token was picked for a number: not for NaN, infinity, or where all are ruled out
    (minus infinity). Otherwise token 0 stands there, which can be fed."""
    return -0x7F800001 < picked >> 32 < 0x7F800000


def nothing(seats: int, device: torch.device) -> Tensor:
    """Room for what `sample` picks."""
    return torch.full((seats,), NONE, dtype=torch.int64, device=device)
