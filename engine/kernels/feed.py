"""What a step reads, from one packed copy: token ids, those just sampled included, and block
tables brought up to date.

A step is launched before the host knows what the step before it said: the token is taken from
where `sample` left it (vLLM's and mini-sglang's overlapped loops; research/engines.md §1.2).
"""

import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow


@triton.jit(do_not_specialize=["count", "updates"])
def _feed(
    ids, sampled, index, value, tokens, picked, tables, count, updates, NONE,
    TILE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    follow(CHAINED)
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = at < count
    id = tl.load(ids + at, mask=live, other=0)
    back = live & (id < 0)
    said = tl.load(picked + tl.maximum(-1 - id, 0), mask=back, other=0)
    fed = (0x7FFFFFFF - (said & 0xFFFFFFFF)).to(tl.int32)
    fed = tl.where(said == NONE, 0, fed)  # that step failed: what this one says will not be heard
    tl.store(tokens + at, tl.where(back, fed, id), mask=live)
    seat = tl.load(sampled + at, mask=live, other=-1)
    # a row that reads what it said and will say more is one and the same: no other reads it
    tl.store(picked + tl.maximum(seat, 0), NONE, mask=seat >= 0)
    change = at < updates
    where = tl.load(index + at, mask=change, other=-1)
    block = tl.load(value + at, mask=change, other=0)
    tl.store(tables + tl.maximum(where, 0), block, mask=where >= 0)


def feed(
    ids: Tensor, sampled: Tensor, index: Tensor, value: Tensor, tokens: Tensor, picked: Tensor,
    tables: Tensor,
) -> None:  # fmt: skip
    """`ids` [T] int32 into `tokens` [T] int32, where -1 - s is what seat s said last; `sampled` [T]
    int32 are the seats that say something this step, -1 elsewhere. `tables` [seats, W] int32 takes
    `value` [U] at the flat places `index` [U]; -1 is none."""
    from drawloom.engine.kernels.sample import NONE

    count, updates = ids.shape[0], index.shape[0]
    _feed[(triton.cdiv(max(count, updates, 1), 256),)](
        ids, sampled, index, value, tokens, picked, tables, count, updates, NONE, TILE=256,
        **chained(),
    )  # fmt: skip
