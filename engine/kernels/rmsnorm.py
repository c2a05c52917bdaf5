"""Residual addition and RMS norm in one pass over a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow


@triton.jit
def _kernel(
    x,
    residual,
    weight,
    out,
    total,
    width,
    eps,
    HAS: tl.constexpr,
    TILE: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    row = tl.program_id(0).to(tl.int64) * width
    cols = tl.arange(0, TILE)
    live = cols < width
    kind = x.dtype.element_ty
    wide = tl.load(x + row + cols, mask=live, other=0.0).to(tl.float32)
    if HAS:
        wide += tl.load(residual + row + cols, mask=live, other=0.0).to(tl.float32)
        wide = wide.to(kind).to(tl.float32)
        tl.store(total + row + cols, wide.to(kind), mask=live)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    gain = tl.load(weight + cols, mask=live, other=0.0).to(tl.float32)
    normed = (wide * scale).to(kind).to(tl.float32)
    tl.store(out + row + cols, (normed * gain).to(kind), mask=live)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the RMS norm of ``x + residual`` and that sum, both [T, H]; one program a row."""
    x = x.contiguous()
    width = x.shape[-1]
    out = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    other = x if residual is None else residual.contiguous()
    tile = triton.next_power_of_2(width)
    if x.shape[0]:
        _kernel[(x.shape[0],)](
            x,
            other,
            weight,
            out,
            total,
            width,
            eps,
            HAS=residual is not None,
            TILE=tile,
            **chained(),
        )
    return out, total
