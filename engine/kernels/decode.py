"""Decode attention over a paged cache, its keys split into parts of about equal length.

One query token a sequence leaves most of a GPU idle, and one long sequence keeps all others
waiting, if each is one program. So the keys of a batch are cut into parts, computed each on its
own and merged by their log-sum-exp (Flash-Decoding, Dao et al. 2023), in their order, by whichever
of a sequence is done last. How they are cut is decided on the device, once a step for all layers:
the grid never changes, so that a CUDA graph may hold it, and a sequence gets as many parts as its
length is worth (FlashInfer, Ye et al. 2024, §3.3). The query heads that share a key head are the
rows of one product: a key is read once for them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.chip import processors
from drawloom.engine.kernels.online import LOG2E, fold, settle
from drawloom.engine.kernels.tuning import DECODE

TILE = 64  # parts are so many keys long, or a multiple of it


@dataclass(slots=True)
class Decodes:
    """Where the KV of B decoding sequences is.

    Attributes:
        tables: [seats, W] int32, the blocks of each seat.
        seats: [B] int32, the seat of each row.
        contexts: [B] int32, tokens of each, the new one included; 0 is a row of padding.
        window: tokens that a token attends to, itself included; 0 is all.
        since: [B] int32, tokens at the beginning that `cascade` reads for many at once.
        members: [tiles * queries] int32, rows that share those tokens, tile by tile; -1 is none.
    """

    tables: Tensor
    seats: Tensor
    contexts: Tensor
    window: int = 0
    since: Tensor | None = None
    members: Tensor | None = None


@dataclass(slots=True)
class Parts:
    """Room for the parts of a step: where each begins and ends, and what came of it.

    `offsets` [B + 1] says whose they are, `owner`, `begin`, `end` [P] what each is; `partial`
    [P, heads, d] and `mass` [P, heads] (base-2 logarithms) are float32; `arrived` [B * heads]
    counts those that are done, and is zeros between steps.
    """

    offsets: Tensor
    owner: Tensor
    begin: Tensor
    end: Tensor
    partial: Tensor
    mass: Tensor
    arrived: Tensor

    @classmethod
    def room(cls, batch: int, heads: int, depth: int, parts: int, device: torch.device) -> "Parts":
        """For batches of up to `batch`; `parts` over and above one for each sequence."""
        count = batch + max(1, parts)

        def ints(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        partial = torch.empty(count, heads, depth, dtype=torch.float32, device=device)
        mass = torch.empty(count, heads, dtype=torch.float32, device=device)
        return cls(
            ints(batch + 1), ints(count), ints(count), ints(count), partial, mass,
            ints(batch * heads),
        )  # fmt: skip

    def of(self, batch: int) -> "Parts":
        """Of this room, what a batch of this size needs."""
        count = self.owner.shape[0] - self.offsets.shape[0] + 1 + batch
        return Parts(
            self.offsets[: batch + 1], self.owner[:count], self.begin[:count], self.end[:count],
            self.partial[:count], self.mass[:count], self.arrived,
        )  # fmt: skip


def spare_parts(kv_heads: int) -> int:
    """Parts, over one for each sequence, that keep every processor busy with four programs."""
    return -(-4 * processors() // kv_heads)


@triton.jit(do_not_specialize=["count", "parts"])
def _cut(
    contexts, since, offsets, owner, begin, end, count, window, parts, minimum,
    SINCE: tl.constexpr, BATCH: tl.constexpr, TILE: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, BATCH)
    live = rows < count
    context = tl.load(contexts + rows, mask=live, other=0)
    first = tl.maximum(0, context - window) // TILE * TILE
    if SINCE:
        first = tl.maximum(first, tl.load(since + rows, mask=live, other=0))
    length = tl.maximum(0, context - first)
    # sum over max(1, ceil(length / size)) <= sum(length) / size + count: all parts have room
    size = tl.cdiv(tl.cdiv(tl.sum(length, 0), parts - count), TILE) * TILE
    size = tl.maximum(size, minimum)
    # a row of padding has an empty part, which gives zeros
    pieces = tl.where(live, tl.maximum(1, tl.cdiv(length, size)), 0)
    ends = tl.cumsum(pieces, 0)
    if tl.program_id(0) == 0:
        tl.store(offsets + rows + 1, ends, mask=live)
        tl.store(offsets, 0)
    # a sequence's own parts are equal too
    even = tl.cdiv(tl.cdiv(length, tl.maximum(pieces, 1)), TILE) * TILE
    work = tl.program_id(0) * WORK + tl.arange(0, WORK)
    mine = tl.sum((ends[None, :] <= work[:, None]).to(tl.int32), 1)
    chosen = rows[None, :] == mine[:, None]
    place = work - tl.sum(tl.where(chosen, (ends - pieces)[None, :], 0), 1)
    step = tl.sum(tl.where(chosen, even[None, :], 0), 1)
    start = tl.sum(tl.where(chosen, first[None, :], 0), 1) + place * step
    stop = tl.minimum(start + step, tl.sum(tl.where(chosen, context[None, :], 0), 1))
    here = work < parts
    tl.store(owner + work, tl.where(work < tl.sum(pieces, 0), mine, -1), mask=here)
    tl.store(begin + work, start, mask=here)
    tl.store(end + work, stop, mask=here)


def cut(at: Decodes, parts: Parts) -> None:
    """Divide the keys of a step into parts; good for all of its layers."""
    count, room = at.contexts.shape[0], parts.owner.shape[0]
    has = at.since is not None
    _cut[(triton.cdiv(room, 64),)](
        at.contexts, at.since if has else at.contexts, parts.offsets, parts.owner, parts.begin,
        parts.end, count, at.window or 1 << 30, room, 2 * TILE,
        SINCE=has, BATCH=triton.next_power_of_2(count), TILE=TILE, WORK=64, num_warps=4,
    )  # fmt: skip


@triton.jit
def _decode(
    q, keys, values, out, tables, seats, contexts, offsets, owner, begin, end, partial, masses,
    arrived, scale, window, table_row, q_row, q_head, cache_block, cache_token, cache_head, heads,
    GROUP: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, MERGE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    part, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(owner + part)
    if row >= 0:
        rows, depth = tl.arange(0, ROWS), tl.arange(0, WIDE)
        mine = head * GROUP + rows
        mask = (rows < GROUP)[:, None] & (depth < DEPTH)[None, :]
        ask = tl.load(
            q + row.to(tl.int64) * q_row + (mine * q_head)[:, None] + depth[None, :],
            mask=mask, other=0.0,
        )  # fmt: skip
        if WIDEN:
            ask = ask.to(tl.float32)
        context = tl.load(contexts + row)
        oldest = context - window
        start, stop = tl.load(begin + part), tl.load(end + part)
        table = tables + tl.load(seats + row).to(tl.int64) * table_row
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, WIDE), tl.float32)
        for at in range(start, stop, TILE):
            cols = at + tl.arange(0, TILE)
            real = (cols < stop) & (cols >= oldest)
            best, mass, total = fold(
                ask, best, mass, total, keys, values, table, cols, real, real[None, :],
                head * cache_head, depth, scale, cache_block, cache_token,
                DEPTH, WIDE, SIZE, True, WIDEN,
            )  # fmt: skip
        mean, log = settle(best, mass, total)
        first = tl.load(offsets + row)
        pieces = tl.load(offsets + row + 1) - first
        place = (row.to(tl.int64) * heads + mine)[:, None] * DEPTH + depth[None, :]
        if MERGE & (pieces == 1):
            tl.store(out + place, mean.to(out.dtype.element_ty), mask=mask)
        else:
            where = part.to(tl.int64) * heads + mine
            tl.store(partial + where[:, None] * DEPTH + depth[None, :], mean, mask=mask)
            tl.store(masses + where, log, mask=rows < GROUP)
            if MERGE:
                tl.debug_barrier()
                count = arrived + row * tl.num_programs(1) + head
                if tl.atomic_add(count, 1) == pieces - 1:
                    tl.store(count, 0)
                    best = tl.full((ROWS,), float("-inf"), tl.float32)
                    mass = tl.zeros((ROWS,), tl.float32)
                    total = tl.zeros((ROWS, WIDE), tl.float32)
                    for other in range(pieces):
                        spot = (first.to(tl.int64) + other) * heads + mine
                        log = tl.load(
                            masses + spot, mask=rows < GROUP, other=float("-inf"),
                            cache_modifier=".cg",
                        )  # fmt: skip
                        value = tl.load(
                            partial + spot[:, None] * DEPTH + depth[None, :], mask=mask, other=0.0,
                            cache_modifier=".cg",
                        )  # fmt: skip
                        top = tl.maximum(best, log)
                        calm = tl.where(top == float("-inf"), 0.0, top)
                        old, new = tl.exp2(best - calm), tl.exp2(log - calm)
                        total = total * old[:, None] + value * new[:, None]
                        mass, best = mass * old + new, top
                    mean, _ = settle(best, mass, total)
                    tl.store(out + place, mean.to(out.dtype.element_ty), mask=mask)


def decode(
    q: Tensor, keys: Tensor, values: Tensor, at: Decodes, parts: Parts, out: Tensor | None = None
) -> Tensor:
    """`q` [B, heads, d], `keys` and `values` [blocks, size, kv_heads, d] to [B, heads, d].

    `parts` were cut for this step. Scale is d ** -0.5. A row of padding gives zeros.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    parts_of(q, keys, values, at, parts, out, merged=True)
    return out


def parts_of(
    q: Tensor, keys: Tensor, values: Tensor, at: Decodes, parts: Parts, out: Tensor, merged: bool
) -> None:
    """What each part gives, `merged` into `out` or left in `parts`."""
    assert keys.stride() == values.stride() and q.stride(2) == keys.stride(3) == 1
    heads, depth = q.shape[1:]
    group = heads // keys.shape[2]
    tiling = DECODE.of((heads, keys.shape[2], depth))
    _decode[(parts.owner.shape[0], keys.shape[2])](
        q, keys, values, out, at.tables, at.seats, at.contexts, parts.offsets, parts.owner,
        parts.begin, parts.end, parts.partial, parts.mass, parts.arrived, depth**-0.5 * LOG2E,
        at.window or 1 << 30, at.tables.stride(0), q.stride(0), q.stride(1),
        keys.stride(0), keys.stride(1), keys.stride(2), heads,
        GROUP=group, DEPTH=depth, WIDE=max(16, triton.next_power_of_2(depth)), SIZE=keys.shape[1],
        ROWS=max(16, triton.next_power_of_2(group)), TILE=tiling.keys, MERGE=merged,
        WIDEN=triton.knobs.runtime.interpret,  # its dot reads bfloat16 as integers
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip
