"""Gate of the MLP, in one pass over a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow


@triton.jit
def _kernel(x, out, width, TILE: tl.constexpr, CHAINED: tl.constexpr):
    follow(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * TILE + tl.arange(0, TILE)
    live = cols < width
    gate = tl.load(x + row * 2 * width + cols, mask=live, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + cols, mask=live, other=0.0).to(tl.float32)
    kind = x.dtype.element_ty
    gate = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32)
    tl.store(out + row * width + cols, (gate * up).to(kind), mask=live)


def silu_mul(x: Tensor) -> Tensor:
    """Return ``silu(a) * b`` [T, I] of x = [a, b] [T, 2 I]."""
    x = x.contiguous()
    width = x.shape[1] // 2
    out = torch.empty(x.shape[0], width, dtype=x.dtype, device=x.device)
    tile = min(1024, triton.next_power_of_2(width))
    if x.shape[0]:
        _kernel[(x.shape[0], triton.cdiv(width, tile))](x, out, width, TILE=tile, **chained())
    return out
