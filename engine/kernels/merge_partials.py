"""Merging the parts of an attention by their log-sum-exp (Flash-Decoding, Dao et al. 2023)."""

import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow


@triton.jit
def _add(best, mass, total, log, value):
    """One part more: its base-2 logarithm of the mass, and its weighted mean [WIDE]."""
    top = tl.maximum(best, log)
    calm = tl.where(top == float("-inf"), 0.0, top)
    old, new = tl.exp2(best - calm), tl.exp2(log - calm)
    return top, mass * old + new, total * old + value * new


@triton.jit(do_not_specialize=["batch"])
def _merge(
    partial, masses, offsets, before, before_masses, since, out, heads, batch,
    BEFORE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
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
    if tl.load(since + row) > 0:
        for part in range(BEFORE):
            at = (part * batch + row) * heads + head
            value = tl.load(before + at * DEPTH + depth, mask=live, other=0.0)
            best, mass, total = _add(best, mass, total, tl.load(before_masses + at), value)
    mean = total / tl.where(mass == 0.0, 1.0, mass)
    where = (row * heads + head) * DEPTH + depth
    tl.store(out + where, mean.to(out.dtype.element_ty), mask=live)


def merge(
    partial: Tensor,
    mass: Tensor,
    offsets: Tensor,
    before: Tensor,
    before_mass: Tensor,
    since: Tensor,
    out: Tensor,
) -> None:
    """Into `out` [B, heads, d]: of each row its own parts, `partial` [P, heads, d] and `mass`
    [P, heads] (base-2 logarithms) from `offsets` [B + 1], and, where `since` [B] is not 0, those of
    what it shares, `before` [N, B, heads, d] and `before_mass` [N, B, heads]."""
    batch, heads, depth = out.shape
    _merge[(batch, heads)](
        partial, mass, offsets, before, before_mass, since, out, heads, batch,
        BEFORE=before.shape[0], DEPTH=depth, WIDE=triton.next_power_of_2(depth), num_warps=1,
        **chained(),
    )  # fmt: skip
