"""Merge of partial attention results by their log-sum-exp (Flash-Decoding, Dao et al. 2023)."""

import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow
from drawloom.engine.kernels.types import KeyParts


@triton.jit
def _add(best, mass, total, log, value):
    """Add one part: the base-2 logarithm of its mass, and its weighted mean [WIDE]."""
    top = tl.maximum(best, log)
    calm = tl.where(top == float("-inf"), 0.0, top)
    old, new = tl.exp2(best - calm), tl.exp2(log - calm)
    return top, mass * old + new, total * old + value * new


@triton.jit(do_not_specialize=["batch"])
def _merge(
    partial,
    masses,
    offsets,
    shared,
    shared_masses,
    lengths,
    out,
    heads,
    batch,
    SHARED: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, last = tl.load(offsets + row), tl.load(offsets + row + 1)
    depth = tl.arange(0, WIDE)
    live = depth < DEPTH
    best, mass = float("-inf"), 0.0
    total = tl.zeros((WIDE,), tl.float32)
    for part in range(last - first):
        at = (first.to(tl.int64) + part) * heads + head
        value = tl.load(partial + at * DEPTH + depth, mask=live, other=0.0)
        best, mass, total = _add(best, mass, total, tl.load(masses + at), value)
    if tl.load(lengths + row) > 0:
        for part in range(SHARED):
            at = (part * batch + row) * heads + head
            value = tl.load(shared + at * DEPTH + depth, mask=live, other=0.0)
            best, mass, total = _add(best, mass, total, tl.load(shared_masses + at), value)
    mean = total / tl.where(mass == 0.0, 1.0, mass)
    where = (row * heads + head) * DEPTH + depth
    tl.store(out + where, mean.to(out.dtype.element_ty), mask=live)


def merge(
    parts: KeyParts, shared_parts: tuple[Tensor, Tensor], shared_tokens: Tensor, out: Tensor
) -> None:
    """Merge each row's own parts with those of the prefix that it shares.

    Args:
        parts: the rows' own parts.
        shared_parts: means [N, B, heads, d] and base-2 logarithms of masses [N, B, heads] of the
            prefixes.
        shared_tokens: [B] int32; 0 where a row shares no prefix.
        out: [B, heads, d], written in place.
    """
    batch, heads, depth = out.shape
    _merge[(batch, heads)](
        parts.partial,
        parts.mass,
        parts.offsets,
        *shared_parts,
        shared_tokens,
        out,
        heads,
        batch,
        SHARED=shared_parts[0].shape[0],
        DEPTH=depth,
        WIDE=triton.next_power_of_2(depth),
        num_warps=1,
        **chained(),
    )
