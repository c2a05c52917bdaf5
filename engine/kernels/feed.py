"""Input tokens and block tables of a step, unpacked on the device from one packed copy.

A step is launched before the host knows the tokens that the step before it sampled. They are taken
from where `sample` left them on the device, as in the overlapped loops of vLLM and mini-sglang.
"""

import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow
from drawloom.engine.kernels.sample import NONE


@triton.jit(do_not_specialize=["count", "updates"])
def _feed(
    ids,
    cleared,
    index,
    value,
    tokens,
    picked,
    tables,
    count,
    updates,
    NONE,
    TILE: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = at < count
    id = tl.load(ids + at, mask=live, other=0)
    back = live & (id < 0)
    pick = tl.load(picked + tl.maximum(-1 - id, 0), mask=back, other=0)
    fed = (0x7FFFFFFF - (pick & 0xFFFFFFFF)).to(tl.int32)
    fed = tl.where(pick == NONE, 0, fed)  # that step failed: the result of this one is discarded
    tl.store(tokens + at, tl.where(back, fed, id), mask=live)
    slot = tl.load(cleared + at, mask=live, other=-1)
    # no race: the only row that reads a slot's last token is the one that samples its next
    tl.store(picked + tl.maximum(slot, 0), NONE, mask=slot >= 0)
    change = at < updates
    where = tl.load(index + at, mask=change, other=-1)
    block = tl.load(value + at, mask=change, other=0)
    tl.store(tables + tl.maximum(where, 0), block, mask=where >= 0)


def feed(
    ids: Tensor,
    cleared: Tensor,
    index: Tensor,
    value: Tensor,
    *,
    tokens: Tensor,
    picked: Tensor,
    tables: Tensor,
) -> None:
    """Unpack a step's input tokens and update the block tables.

    Args:
        ids: [T] int32 token ids; -1 - s stands for the last token sampled for sequence slot s.
        cleared: [T] int32, the sequence slots that sample a token this step, -1 elsewhere; their
            entries of `picked` are cleared.
        index: [U] int32, flat indices of the changed entries of `tables`; -1 is none.
        value: [U] int32, the new entries.
        tokens: [T] int32, written: the ids to compute.
        picked: [slots] int64, the tokens that `sample` picked.
        tables: [slots, W] int32, updated in place.
    """
    count, updates = ids.shape[0], index.shape[0]
    _feed[(triton.cdiv(max(count, updates, 1), 256),)](
        ids,
        cleared,
        index,
        value,
        tokens,
        picked,
        tables,
        count,
        updates,
        NONE,
        TILE=256,
        **chained(),
    )
