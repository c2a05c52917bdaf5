"""Merging parts of an attention by their log-sum-exp (Flash-Decoding, Dao et al. 2023)."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["batch"])
def _merge(
    partial, masses, offsets, out, before, before_masses, since, heads, batch,
    BEFORE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, last = tl.load(offsets + row), tl.load(offsets + row + 1)
    shared = False
    if BEFORE > 0:
        shared = tl.load(since + row) > 0
    if (last - first != 1) | (BEFORE > 0):
        depth = tl.arange(0, WIDE)
        live = depth < DEPTH
        best, mass = float("-inf"), 0.0
        total = tl.zeros((WIDE,), tl.float32)
        for part in range(last - first):
            at = (first.to(tl.int64) + part) * heads + head
            log = tl.load(masses + at)
            value = tl.load(partial + at * DEPTH + depth, mask=live, other=0.0)
            top = tl.maximum(best, log)
            calm = tl.where(top == float("-inf"), 0.0, top)
            old, new = tl.exp2(best - calm), tl.exp2(log - calm)
            total, mass, best = total * old + value * new, mass * old + new, top
        if shared:
            for part in range(BEFORE):
                at = (part * batch + row) * heads + head
                log = tl.load(before_masses + at)
                value = tl.load(before + at * DEPTH + depth, mask=live, other=0.0)
                value = tl.where(log == float("-inf"), 0.0, value)  # nobody wrote it
                top = tl.maximum(best, log)
                calm = tl.where(top == float("-inf"), 0.0, top)
                old, new = tl.exp2(best - calm), tl.exp2(log - calm)
                total, mass, best = total * old + value * new, mass * old + new, top
        mean = total / tl.where(mass == 0.0, 1.0, mass)
        where = (row * heads + head) * DEPTH + depth
        tl.store(out + where, mean.to(out.dtype.element_ty), mask=live)


def merge(
    partial: Tensor,
    mass: Tensor,
    offsets: Tensor,
    out: Tensor,
    before: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """`partial` [P, heads, d] and `mass` [P, heads] (base-2 logarithms) of each row's parts,
    `offsets` [B + 1], into `out` [B, heads, d]. Rows of one part are left as they are, unless there
    is a `before`: parts [N, B, heads, d], their masses [N, B, heads], and which rows have them [B].
    """
    batch, heads, depth = out.shape
    parts, masses, since = before if before is not None else (partial, mass, offsets)
    _merge[(batch, heads)](
        partial, mass, offsets, out, parts, masses, since, heads, batch,
        BEFORE=parts.shape[0] if before is not None else 0, DEPTH=depth,
        WIDE=triton.next_power_of_2(depth), num_warps=1,
    )  # fmt: skip
