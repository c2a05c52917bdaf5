"""What each kernel computes, in plain torch, with the same signature: the oracle of its tests.

Exact in the type of its input: given float64, it is what a GPU's result is held against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.kernels.decode import Decodes, Parts
from drawloom.engine.kernels.prefill import Prefills
from drawloom.engine.ops.base import Stream
from drawloom.engine.ops.reference import attend, ready


def decode(
    q: Tensor, keys: Tensor, values: Tensor, at: Decodes, parts: Parts, out: Tensor | None = None
) -> Tensor:
    out = torch.empty_like(q) if out is None else out
    size = keys.shape[1]
    for row, (seat, context) in enumerate(
        zip(at.seats.tolist(), at.contexts.tolist(), strict=True)
    ):
        if not context:
            out[row] = 0
            continue
        table = at.tables[seat, : -(-context // size)].tolist()
        out[row] = attend(q[row : row + 1], keys, values, table, context, at.window)[0]
    return out


def cascade(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    at: Decodes,
    parts: Parts,
    before: tuple[Tensor, Tensor],
    out: Tensor | None = None,
) -> Tensor:
    return decode(q, keys, values, at, parts, out)


def prefill(
    q: Tensor, keys: Tensor, values: Tensor, at: Prefills, size: int, out: Tensor | None = None
) -> Tensor:
    out = torch.empty_like(q) if out is None else out
    starts, block = at.starts.tolist(), keys.shape[1]
    rows = zip(at.seats.tolist(), at.contexts.tolist(), starts, starts[1:], strict=False)
    for seat, context, begin, end in rows:
        if not context:
            out[begin:end] = 0
            continue
        table = at.tables[seat, : -(-context // block)].tolist()
        out[begin:end] = attend(q[begin:end], keys, values, table, context, at.window)
    return out


def gather(store: Tensor, blocks: Tensor, out: Tensor) -> None:
    out[: blocks.shape[0]] = store[blocks.long()].flatten(1).view_as(out[: blocks.shape[0]])


def scatter(store: Tensor, blocks: Tensor, data: Tensor) -> None:
    store[blocks.long()] = data[: blocks.shape[0]].view_as(store[blocks.long()])


def normed(
    stream: Stream, weight: Tensor, bias: Tensor | None = None, *, eps: float, gated: bool = False
) -> Tensor:
    wide = torch.float64 if stream.x.dtype is torch.float64 else torch.float32
    mean = stream.squares.sum(0)[: stream.x.shape[0], None] / stream.x.shape[1]
    h = stream.scaled.to(wide) * torch.rsqrt(mean + eps)
    y = F.linear(h, weight.to(wide), None if bias is None else bias.to(wide))
    if gated:
        gate, up = y.chunk(2, -1)
        y = F.silu(gate) * up
    return y.to(stream.x.dtype)


def added(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, onto: Stream, gain: Tensor
) -> Stream:
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    y = F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    return ready((y + onto.x.to(wide)).to(x.dtype), gain)


__all__ = ["added", "cascade", "decode", "gather", "normed", "prefill", "scatter"]
