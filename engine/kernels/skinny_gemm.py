"""Fused products of small batches: weights are read once, at the speed of memory.

A tile of weights is the left factor, because a warpgroup wants 64 rows and a small batch has fewer
tokens. Where there are fewer tiles than processors, the depth is split, and the program that
finishes last adds the parts up in a fixed order, so that the result does not depend on timing. The
norm between two products is divided among them: the first writes its result times the norm's gain
and the sums of its squares, tile by tile; the second divides by their root at its end. With the
gate and the residual as epilogues, a decoder layer takes 6 kernels instead of 9.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import (
    HOPPER,
    announce,
    await_,
    capability,
    chained,
    follow,
    processors,
)
from drawloom.engine.kernels.types import Stream

ROWS = 64  # the largest batch
_TILE = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """Describe the outputs and depth of a tile, and the warps and stages that compute it."""

    out: int
    deep: int
    warps: int
    stages: int


# by (rows, gated): the fastest in whole steps on an H200, where rows of a tile should have 256 or
# 512 bytes, and a processor about 80 KiB in flight
TILES = {
    (16, False): Tile(64, 256, 4, 5),
    (16, True): Tile(64, 256, 4, 3),
    (32, False): Tile(64, 128, 4, 5),
    (32, True): Tile(64, 128, 4, 4),
    (64, False): Tile(64, 128, 4, 5),
    (64, True): Tile(64, 128, 4, 4),
}


@triton.jit(do_not_specialize=["rows", "pieces"])
def _skinny(
    x,
    weight,
    bias,
    squares,
    residual,
    gain,
    out,
    scaled,
    sums,
    scratch,
    counters,
    rows,
    width,
    depth,
    pieces,
    eps,
    x_row,
    per,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    ONTO: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    DEEP: tl.constexpr,
    SPLIT: tl.constexpr,
    PIECES: tl.constexpr,
    WIDEN: tl.constexpr,
    CHAINED: tl.constexpr,
):
    tile, part = tl.program_id(0), tl.program_id(1)
    cols = tile * OUT + tl.arange(0, OUT)
    here = cols < width
    wide = cols.to(tl.int64)
    first = part * per
    stop = tl.minimum(depth, first + per)
    await_(CHAINED)
    row = tl.arange(0, ROWS)
    live = row < rows
    mask = here[:, None] & live[None, :]
    place = row[None, :] * width + cols[:, None]
    if NORM:
        piece = tl.arange(0, PIECES)
        square = tl.load(
            squares + piece[:, None] * ROWS + row[None, :],
            mask=(piece < pieces)[:, None],
            other=0.0,
        )
    if ONTO:
        before = tl.load(residual + place, mask=mask, other=0.0)
        factor = tl.load(gain + cols, mask=here, other=0.0).to(tl.float32)
    acc = tl.zeros((OUT, ROWS), tl.float32)
    second = tl.zeros((OUT, ROWS), tl.float32)
    for at in range(first, stop, DEEP):
        k = at + tl.arange(0, DEEP)
        inside = k < stop
        h = tl.load(
            x + row[None, :] * x_row + k[:, None], mask=inside[:, None] & live[None, :], other=0.0
        )
        real = here[:, None] & inside[None, :]
        w = tl.load(weight + wide[:, None] * depth + k[None, :], mask=real, other=0.0)
        if GATED:
            u = tl.load(weight + (wide[:, None] + width) * depth + k[None, :], mask=real, other=0.0)
            if WIDEN:
                u = u.to(tl.float32)
        if WIDEN:
            h, w = h.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(w, h, acc, input_precision="ieee")
        if GATED:
            second = tl.dot(u, h, second, input_precision="ieee")
    # not sooner: the next kernel, waiting, would take memory bandwidth from this one
    announce(CHAINED)
    last = True
    if SPLIT > 1:
        area = SPLIT * ROWS
        spot = (tile * area + part * ROWS + row[None, :]) * OUT + tl.arange(0, OUT)[:, None]
        step = tl.num_programs(0) * area * OUT
        tl.store(scratch + spot, acc)
        if GATED:
            tl.store(scratch + step + spot, second)
        tl.debug_barrier()
        last = tl.atomic_add(counters + tile, 1) == SPLIT - 1
        if last:
            acc = tl.zeros((OUT, ROWS), tl.float32)
            second = tl.zeros((OUT, ROWS), tl.float32)
            for other in tl.static_range(SPLIT):
                spot = (tile * area + other * ROWS + row[None, :]) * OUT
                spot += tl.arange(0, OUT)[:, None]
                acc += tl.load(scratch + spot, cache_modifier=".cg")
                if GATED:
                    second += tl.load(scratch + step + spot, cache_modifier=".cg")
            tl.store(counters + tile, 0)
    if last:
        if NORM:
            scale = tl.rsqrt(tl.sum(square, 0) / depth + eps)
            acc *= scale[None, :]
            second *= scale[None, :]
        if BIAS:
            acc += tl.load(bias + cols, mask=here, other=0.0).to(tl.float32)[:, None]
            if GATED:
                second += tl.load(bias + width + cols, mask=here, other=0.0).to(tl.float32)[:, None]
        if GATED:
            acc = acc * tl.sigmoid(acc) * second
        kind = out.dtype.element_ty
        if ONTO:
            acc += before.to(tl.float32)
        y = acc.to(kind)
        tl.store(out + place, y, mask=mask)
        if ONTO:
            full = tl.where(mask, y.to(tl.float32), 0.0)
            tl.store(scaled + place, (full * factor[:, None]).to(kind), mask=mask)
            tl.store(sums + tile * ROWS + row, tl.sum(full * full, 0))


@triton.jit(do_not_specialize=["rows"])
def _embed(
    tokens,
    embedding,
    gain,
    out,
    scaled,
    sums,
    rows,
    width,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    cols = tl.program_id(0) * OUT + tl.arange(0, OUT)
    row = tl.arange(0, ROWS)
    mask = (cols < width)[None, :] & (row < rows)[:, None]
    token = tl.load(tokens + row, mask=row < rows, other=0).to(tl.int64)
    x = tl.load(embedding + token[:, None] * width + cols[None, :], mask=mask, other=0.0)
    place = row[:, None] * width + cols[None, :]
    tl.store(out + place, x, mask=mask)
    full = x.to(tl.float32)
    factor = tl.load(gain + cols, mask=cols < width, other=0.0).to(tl.float32)
    tl.store(scaled + place, (full * factor[None, :]).to(x.dtype), mask=mask)
    tl.store(sums + tl.program_id(0) * ROWS + row, tl.sum(full * full, 1))


class Scratch:
    """Hold the partial sums of a product, and the counters of its finished parts.

    All products of a device share it, because they follow each other on one stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.parts = torch.empty(1 << 22, dtype=torch.float32, device=device)
        self.counters = torch.zeros(1 << 14, dtype=torch.int32, device=device)


def _padded_rows(rows: int) -> int:
    """Return the rows that are computed for a batch of this size."""
    assert rows <= ROWS
    high: int = max(16, triton.next_power_of_2(rows))
    return high


def choose_tile(
    rows: int, width: int, depth: int, *, many: int, gated: bool, size: int = 2
) -> tuple[Tile, int]:
    """Choose the tile of a product, and the number of parts that its depth is split into.

    Args:
        rows: tokens.
        width: outputs.
        depth: inputs.
        many: processors; tiles times parts do not exceed them if they can be fewer.
        gated: there are two products, for the gate and what it multiplies.
        size: bytes of a number.
    """
    tile = TILES[_padded_rows(rows), gated]
    out, split = tile.out, 1
    if rows <= 16:  # small tiles are better than parts, which must wait for each other
        while out > 16 and triton.cdiv(width, out) < 64:
            out //= 2
    tiles = triton.cdiv(width, out)
    while 2 * tiles * split <= many and split < 8 and depth // (2 * split) >= 256:
        split *= 2
    # chips before Hopper have less shared memory
    most = tile.deep if capability() >= HOPPER else tile.deep // 2
    deep = min(most * 2 // size, max(16, triton.next_power_of_2(depth)))
    while deep > 64 and triton.cdiv(depth, split) % deep:  # some parts would be short
        deep //= 2
    return Tile(out, deep, tile.warps, tile.stages), split


def embed_stream(tokens: Tensor, embedding: Tensor, gain: Tensor) -> Stream:
    """Look up embeddings, ready for the first norm.

    Args:
        tokens: [M <= 64] int32.
        embedding: [V, H].
        gain: [H] of the norm that comes next.
    """
    rows, width = tokens.shape[0], embedding.shape[1]
    stream = _new_stream(rows, width, _TILE, embedding)
    _embed[(triton.cdiv(width, _TILE),)](
        tokens,
        embedding,
        gain,
        stream.x,
        stream.scaled,
        stream.squares,
        rows,
        width,
        ROWS=_padded_rows(rows),
        OUT=_TILE,
        **chained(),
    )
    return stream


def _new_stream(rows: int, width: int, tile: int, like: Tensor) -> Stream:
    x, scaled = (torch.empty(rows, width, dtype=like.dtype, device=like.device) for _ in range(2))
    shape = (triton.cdiv(width, tile), _padded_rows(rows))
    return Stream(x, scaled, torch.empty(shape, dtype=torch.float32, device=like.device))


def norm_linear(
    stream: Stream,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float,
    gated: bool = False,
    scratch: Scratch | None = None,
    many: int = 0,
) -> Tensor:
    """Compute ``norm(x) W^T + b``, with ``silu(a) * b`` of its halves if `gated`.

    Sums are in float32.

    Args:
        stream: the residual stream [M <= 64, K], ready for the norm.
        weight: [N, K], contiguous.
        bias: [N].
        eps: epsilon of the norm.
        scratch: shared by the products of a device; allocated if None.
        many: processors that share the work; 0 is all.

    Returns:
        [M, N], or [M, N / 2] if gated.
    """
    width = weight.shape[0] // 2 if gated else weight.shape[0]
    x = stream.scaled
    out = torch.empty(x.shape[0], width, dtype=x.dtype, device=x.device)
    _launch(x, weight, bias, out, stream=stream, eps=eps, gated=gated, scratch=scratch, many=many)
    return out


def linear_add(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    onto: Stream,
    gain: Tensor,
    scratch: Scratch | None = None,
    many: int = 0,
) -> Stream:
    """Compute ``onto + x W^T + b``, ready for the next norm.

    Args:
        x: [M <= 64, K].
        weight: [N, K], contiguous.
        bias: [N].
        onto: the residual stream [M, N].
        gain: [N] of the norm that comes next.
        scratch: shared by the products of a device; allocated if None.
        many: processors that share the work; 0 is all.
    """
    rows, (width, depth) = x.shape[0], weight.shape
    many = many or processors()
    tile, _ = choose_tile(rows, width, depth, many=many, gated=False, size=x.element_size())
    stream = _new_stream(rows, width, tile.out, x)
    _launch(
        x, weight, bias, stream.x, stream=onto, gain=gain, into=stream, scratch=scratch, many=many
    )
    return stream


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    stream: Stream,
    eps: float = 0.0,
    gated: bool = False,
    gain: Tensor | None = None,
    into: Stream | None = None,
    scratch: Scratch | None,
    many: int,
) -> None:
    """Launch a product: of the normed `stream`, or added to it and written `into` another."""
    (rows, depth), width = x.shape, out.shape[1]
    assert weight.is_contiguous() and x.stride(1) == 1
    high, scratch = _padded_rows(rows), scratch or Scratch(x.device)
    many = many or processors()
    tile, split = choose_tile(rows, width, depth, many=many, gated=gated, size=x.element_size())
    tiles = triton.cdiv(width, tile.out)
    if (1 + gated) * tiles * split * high * tile.out > scratch.parts.shape[0]:
        split = 1
    pieces = stream.squares.shape[0]
    _skinny[(tiles, split)](
        x,
        weight,
        weight if bias is None else bias,
        stream.squares,
        stream.x,
        x if gain is None else gain,
        out,
        out if into is None else into.scaled,
        scratch.parts if into is None else into.squares,
        scratch.parts,
        scratch.counters,
        rows,
        width,
        depth,
        pieces,
        eps,
        x.stride(0),
        triton.cdiv(triton.cdiv(depth, split), tile.deep) * tile.deep,
        NORM=into is None,
        GATED=gated,
        BIAS=bias is not None,
        ONTO=into is not None,
        ROWS=high,
        OUT=tile.out,
        DEEP=tile.deep,
        SPLIT=split,
        PIECES=triton.next_power_of_2(pieces),
        WIDEN=triton.knobs.runtime.interpret,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **chained(),
    )
