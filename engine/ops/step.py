"""Where the tokens of a step stand, in the form that kernels read: all of it on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from drawloom.engine.kernels import prefill
from drawloom.engine.kernels.decode import Decodes, Parts, spare_parts
from drawloom.engine.kernels.prefill import Prefills
from drawloom.engine.ops.base import BatchMeta


@dataclass(slots=True)
class Step:
    """The first `decoding` tokens are one of a sequence each, those behind are whole chunks.

    `parts` is room for what the first come to, `before` for what they share (see `cascade`); `size`
    is the query tokens of a tile of the others; `cut` says that the parts of this step were cut.
    """

    decoding: int
    decodes: Decodes | None = None
    parts: Parts | None = None
    before: tuple[Tensor, Tensor] | None = None
    prefills: Prefills | None = None
    size: int = 1
    cut: bool = False


def step_of(meta: BatchMeta, heads: int, kv_heads: int, depth: int, device: torch.device) -> Step:
    """From lists, for a batch that is put together by hand."""

    def ints(values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).to(device)

    width = max(len(t) for t in meta.tables)
    tables = ints([[max(b, 0) for b in t] + [0] * (width - len(t)) for t in meta.tables])
    count = len(meta.query_lengths)
    seats, contexts = ints(list(range(count))), ints(meta.contexts)
    if max(meta.query_lengths) == 1:
        decodes = Decodes(tables, seats, contexts, meta.window)
        parts = Parts.room(count, heads, depth, spare_parts(kv_heads, count), device)
        return Step(count, decodes, parts)
    starts = [0]
    for length in meta.query_lengths:
        starts.append(starts[-1] + length)
    size = prefill.queries(heads, kv_heads, depth, max(meta.query_lengths))
    tiles = ints(
        [list(pair) for pair in zip(*prefill.tiles(meta.query_lengths, size), strict=True)]
    )
    at = Prefills(tables, seats, contexts, ints(starts), tiles, meta.window)
    return Step(0, prefills=at, size=size)


__all__ = ["Step", "step_of"]
