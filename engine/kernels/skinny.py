"""Products of at most 16 rows: the weights are read once, at the speed of memory, and what stands
before and behind a product in a decoder is done on the way.

A tile of weights is the left factor (a warpgroup wants 64 rows, and there are no 64 tokens), its
depth is cut until all processors have work, and whoever comes last adds the parts up in their
order, so that the result does not depend on who was last. The norm before is a factor of the
result (Σ gain·x·w, times the row's 1/rms), the gate and the residual are its epilogue: a decoder's
layer is 6 kernels (research/engines.md §5.3).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.chip import processors

ROWS = 16


@triton.jit(do_not_specialize=["rows"])
def _skinny(
    x, weight, bias, gain, residual, out, scratch, squares, counters, rows, width, depth, eps,
    x_row, residual_row, per,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, DEEP: tl.constexpr, SPLIT: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    tile, part = tl.program_id(0), tl.program_id(1)
    cols = tile * OUT + tl.arange(0, OUT)
    here = cols < width
    row = tl.arange(0, ROWS)
    live = row < rows
    wide = cols.to(tl.int64)
    acc = tl.zeros((OUT, ROWS), tl.float32)
    second = tl.zeros((OUT, ROWS), tl.float32)
    square = tl.zeros((ROWS,), tl.float32)
    for at in range(part * per, tl.minimum(depth, (part + 1) * per), DEEP):
        k = at + tl.arange(0, DEEP)
        inside = k < depth
        h = tl.load(
            x + row[None, :] * x_row + k[:, None], mask=inside[:, None] & live[None, :], other=0.0
        )
        mask = here[:, None] & inside[None, :]
        w = tl.load(weight + wide[:, None] * depth + k[None, :], mask=mask, other=0.0)
        if NORM:
            full = h.to(tl.float32)
            square += tl.sum(full * full, 0)
            g = tl.load(gain + k, mask=inside, other=0.0).to(tl.float32)
            h = (full * g[:, None]).to(w.dtype)
        if GATED:
            u = tl.load(weight + (wide[:, None] + width) * depth + k[None, :], mask=mask, other=0.0)
            if WIDEN:
                u = u.to(tl.float32)
        if WIDEN:
            h, w = h.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(w, h, acc, input_precision="ieee")
        if GATED:
            second = tl.dot(u, h, second, input_precision="ieee")
    last = True
    if SPLIT > 1:
        area = SPLIT * ROWS
        spot = (tile * area + part * ROWS + row[None, :]) * OUT + tl.arange(0, OUT)[:, None]
        step = tl.num_programs(0) * area * OUT
        tl.store(scratch + spot, acc)
        if GATED:
            tl.store(scratch + step + spot, second)
        if NORM:
            tl.store(squares + tile * area + part * ROWS + row, square)
        tl.debug_barrier()
        last = tl.atomic_add(counters + tile, 1) == SPLIT - 1
        if last:
            acc = tl.zeros((OUT, ROWS), tl.float32)
            second = tl.zeros((OUT, ROWS), tl.float32)
            square = tl.zeros((ROWS,), tl.float32)
            for other in range(SPLIT):
                spot = (tile * area + other * ROWS + row[None, :]) * OUT
                spot += tl.arange(0, OUT)[:, None]
                acc += tl.load(scratch + spot, cache_modifier=".cg")
                if GATED:
                    second += tl.load(scratch + step + spot, cache_modifier=".cg")
                if NORM:
                    square += tl.load(
                        squares + tile * area + other * ROWS + row, cache_modifier=".cg"
                    )
            tl.store(counters + tile, 0)
    if last:
        if NORM:
            scale = tl.rsqrt(square / depth + eps)
            acc *= scale[None, :]
            second *= scale[None, :]
        if BIAS:
            acc += tl.load(bias + cols, mask=here, other=0.0).to(tl.float32)[:, None]
            if GATED:
                second += tl.load(bias + width + cols, mask=here, other=0.0).to(tl.float32)[:, None]
        if GATED:
            acc = acc * tl.sigmoid(acc) * second
        mask = here[:, None] & live[None, :]
        if RESIDUAL:
            acc += tl.load(
                residual + row[None, :] * residual_row + cols[:, None], mask=mask, other=0.0
            ).to(tl.float32)
        tl.store(
            out + row[None, :] * width + cols[:, None], acc.to(out.dtype.element_ty), mask=mask
        )


class Scratch:
    """Room for the parts of a product, shared by all products of a device: they follow each other
    on one stream."""

    def __init__(self, device: torch.device) -> None:
        self.parts = torch.empty(1 << 22, dtype=torch.float32, device=device)
        self.squares = torch.empty(1 << 18, dtype=torch.float32, device=device)
        self.counters = torch.zeros(1 << 14, dtype=torch.int32, device=device)


def shape(width: int, depth: int, many: int, gated: bool) -> tuple[int, int, int]:
    """Outputs of a tile, its depth, and the parts that the whole depth is cut into, so that each
    processor has two programs with 16 KiB of weights under way in each of three stages: the 48 KiB
    that cover a microsecond of its share of 4.8 TB/s, and as much again."""
    out = 64 if triton.cdiv(width, 64) >= 2 * many else 32
    deep = min(128 if out == 64 or gated else 256, max(16, triton.next_power_of_2(depth)))
    tiles, split = triton.cdiv(width, out), 1
    while tiles * split < 2 * many and split < 8 and depth // (2 * split) >= 256:
        split *= 2
    return out, deep, split


def skinny(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gain: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    gated: bool = False,
    scratch: Scratch | None = None,
    many: int = 0,
) -> Tensor:
    """``norm(x) W^T + b``, with ``silu(a) * b`` of its halves if `gated`, plus `residual`.

    `x` [M <= 16, K], `weight` [N, K] contiguous, `gain` [K] of an RMS norm or None. To [M, N], or
    [M, N / 2] if gated. Sums are in float32. `many` processors share the work; 0 is all there are.
    """
    rows, depth = x.shape
    assert rows <= ROWS and weight.is_contiguous() and x.stride(1) == 1
    width = weight.shape[0] // 2 if gated else weight.shape[0]
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    if not rows:
        return out
    size, deep, split = shape(width, depth, many or processors(), gated)
    tiles = triton.cdiv(width, size)
    scratch = scratch or Scratch(x.device)
    if (1 + gated) * tiles * split * ROWS * size > scratch.parts.shape[0]:
        split = 1
    _skinny[(tiles, split)](
        x, weight, weight if bias is None else bias, x if gain is None else gain,
        x if residual is None else residual, out, scratch.parts, scratch.squares,
        scratch.counters, rows, width, depth, eps, x.stride(0),
        0 if residual is None else residual.stride(0),
        triton.cdiv(triton.cdiv(depth, split), deep) * deep,
        NORM=gain is not None, GATED=gated, BIAS=bias is not None, RESIDUAL=residual is not None,
        ROWS=ROWS, OUT=size, DEEP=deep, SPLIT=split,
        WIDEN=triton.knobs.runtime.interpret, num_warps=4, num_stages=4,
    )  # fmt: skip
    return out
