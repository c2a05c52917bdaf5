"""Every kernel against its reference in float64, on fresh random inputs and poisoned outputs.

The same code runs in Triton's interpreter on small inputs (a test does) and on a GPU on large ones.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drawloom.engine.kernels import block_copy as blocks
from drawloom.engine.kernels import (
    cascade,
    decode,
    feed,
    prefill,
    rmsnorm,
    rope,
    sample,
    silu_mul,
)
from drawloom.engine.kernels import skinny_gemm as skinny
from drawloom.engine.kernels.types import (
    BatchMeta,
    DecodeBatch,
    KeyParts,
    PrefillBatch,
    RopeArgs,
    SamplingRows,
)
from drawloom.engine.ops import reference
from drawloom.engine.ops.reference import PlainLinear, ReferenceOps, new_stream
from drawloom.engine.runners.cpu_sampling import gumbel, keep

_SIZE = 16
_TOLERANCE = {torch.bfloat16: 3e-2, torch.float32: 1e-4}


@dataclass(frozen=True, slots=True)
class Scale:
    """Describe how large the inputs are: contexts, heads, layer width and vocabulary."""

    contexts: tuple[int, ...] = (1, 17, 4000, 1024, 300, 2048)
    chunk: int = 700
    shared: int = 2048
    heads: int = 32
    kv_heads: int = 8
    depth: int = 128
    hidden: int = 4096
    vocabulary: int = 128256
    blocks: int = 2048


SMALL = Scale(
    contexts=(1, 17, 150),
    chunk=20,
    shared=144,
    heads=4,
    kv_heads=2,
    depth=16,
    hidden=96,
    vocabulary=90,
    blocks=64,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Hold the error of a kernel, as a share of its reference, and what is allowed."""

    kernel: str
    dtype: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed


def check(device: torch.device, scale: Scale, seed: int) -> Iterator[Verdict]:
    """Verdicts of all kernels in both types. Never raises for a wrong result; NaN is wrong."""
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(seed)
        for name, got, wanted in _all(device, scale, dtype, random.Random(seed)):
            yield Verdict(name, str(dtype)[6:], _error(got, wanted), _TOLERANCE[dtype])


def _error(got: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    size = wanted.abs() + wanted.square().mean().sqrt()
    off = ((got.double() - wanted).abs() / size.clamp_min(1e-30)).max().item()
    return off if off == off else float("inf")


def _all(
    device: torch.device, scale: Scale, dtype: torch.dtype, rng: random.Random
) -> Iterator[tuple[str, Tensor, Tensor]]:
    yield from _attention(device, scale, dtype, rng)
    yield from _elementwise(device, scale, dtype)
    yield from _products(device, scale, dtype)
    yield from _choosing(device, scale, dtype)
    yield from _moving(device, dtype)


def _moving(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Blocks, and what a step reads: exact."""

    def ints(values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    store = torch.randn(8, 2, 2, 2, _SIZE, 16, device=device).to(dtype)
    ids = ints([5, 0, 3])
    out = torch.full((3, *store.shape[1:]), torch.nan, dtype=dtype, device=device)
    blocks.gather(store, ids, out)
    yield "gather", out, store[ids.long()]
    moved, wanted = store.clone(), store.clone()
    blocks.scatter(moved, ids, out.flip(0).contiguous())
    wanted[ids.long()] = store[ids.long().flip(0)]
    yield "scatter", moved, wanted
    moved, wanted = store.clone(), store.clone()
    blocks.copy(moved, ints([[5, 1, 3], [2, 6, _SIZE]]))
    wanted[1, ..., :3, :], wanted[6] = store[5, ..., :3, :], store[2]
    yield "copy", moved, wanted
    picked = sample.no_picks(3, device)
    picked[1] = 0x7FFFFFFF - 77
    tables, read = torch.zeros(3, 4, dtype=torch.int32, device=device), ints([-1, -1, -1])
    feed.feed(
        ints([-2, 8, -1]),
        ints([1, -1, 2]),
        ints([5, -1]),
        ints([9, 9]),
        tokens=read,
        picked=picked,
        tables=tables,
    )
    yield "feed, tokens", read, ints([77, 8, 0])
    yield "feed, tables", tables.flatten(), ints([0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0])


def _cache(scale: Scale, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (scale.blocks, 2, 2, scale.kv_heads, _SIZE, scale.depth)
    memory = torch.randn(shape, device=device).to(dtype)
    memory[:, 0] = torch.nan
    layer = memory.transpose(3, 4)[:, 1]
    return layer[:, 0], layer[:, 1]


def _tables(contexts: list[int], scale: Scale, shared: int, rng: random.Random) -> Tensor:
    free = list(range(scale.blocks))
    rng.shuffle(free)
    width = max(-(-c // _SIZE) for c in contexts) + 1
    common = [free.pop() for _ in range(shared // _SIZE)]
    rows = []
    for context in contexts:
        mine = common + [free.pop() for _ in range(-(-context // _SIZE) - len(common))]
        rows.append(mine + [0] * (width - len(mine)))
    return torch.tensor(rows, dtype=torch.int32)


def _attention(
    device: torch.device, scale: Scale, dtype: torch.dtype, rng: random.Random
) -> Iterator[tuple[str, Tensor, Tensor]]:
    keys, values = _cache(scale, device, dtype)
    wide = keys.double(), values.double()
    heads, depth = scale.heads, scale.depth

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    contexts = [*scale.contexts, 0]
    count = len(contexts)
    q = torch.randn(count, heads, depth, device=device).to(dtype)
    tables = _tables(contexts, scale, 0, rng).to(device)
    for window in (0, 100):
        at = DecodeBatch(tables, ints(list(range(count))), ints(contexts), window)
        parts = _poisoned(KeyParts.allocate(count, heads, depth, 60, device))
        out = torch.full_like(q, torch.nan)
        decode.split_keys(at, parts)
        decode.decode(q, keys, values, at, parts, out)
        name = "decode, windowed" if window else "decode"
        yield name, out, reference.decode(q.double(), *wide, at)
    yield from _cascade(device, scale, dtype, rng, keys, values)
    lengths = [scale.chunk, 1, min(40, scale.contexts[-1])]
    ends = [scale.chunk + 33, scale.contexts[1], scale.contexts[-1]]
    tables = _tables(ends, scale, 0, rng).to(device)
    size = prefill.tile_queries(heads, scale.kv_heads, depth, max(lengths))
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    tiles = torch.tensor(prefill.tiles(lengths, size), dtype=torch.int32, device=device)
    q = torch.randn(starts[-1], heads, depth, device=device).to(dtype)
    for window in (0, 100):
        chunk = PrefillBatch(
            tables, ints([0, 1, 2]), ints(ends), ints(starts), tiles.T.contiguous(), window
        )
        out = torch.full_like(q, torch.nan)
        prefill.prefill(q, keys, values, chunk, size, out)
        name = "prefill, windowed" if window else "prefill"
        yield name, out, reference.prefill(q.double(), *wide, chunk)


def _poisoned(parts: KeyParts) -> KeyParts:
    parts.partial.fill_(torch.nan)
    parts.mass.fill_(torch.nan)
    return parts


def _cascade(
    device: torch.device,
    scale: Scale,
    dtype: torch.dtype,
    rng: random.Random,
    keys: Tensor,
    values: Tensor,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    heads, depth, count = scale.heads, scale.depth, 5
    contexts = [scale.shared + 1 + 7 * row for row in range(count)]
    tile = cascade.tile_rows(heads, scale.kv_heads)
    members = list(range(count)) + [-1] * (-count % tile + tile)

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    at = DecodeBatch(
        _tables(contexts, scale, scale.shared, rng).to(device),
        ints(list(range(count))),
        ints(contexts),
        shared_tokens=ints([scale.shared] * count),
        shared_rows=ints(members),
    )
    parts = _poisoned(KeyParts.allocate(count, heads, depth, 40, device))
    decode.split_keys(at, parts)
    before = (
        torch.full((3, count, heads, depth), torch.nan, device=device),
        torch.full((3, count, heads), torch.nan, device=device),
    )
    q = torch.randn(count, heads, depth, device=device).to(dtype)
    out = torch.full_like(q, torch.nan)
    cascade.cascade(q, keys, values, at, parts, before, out=out)
    wanted = reference.decode(q.double(), keys.double(), values.double(), at)
    yield "cascade", out, wanted


def _elementwise(
    device: torch.device, scale: Scale, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor, Tensor]]:
    plain = ReferenceOps()
    x, other = (torch.randn(5, scale.hidden, device=device).to(dtype) for _ in range(2))
    gain = torch.randn(scale.hidden, device=device).to(dtype)
    got, total = rmsnorm.rms_norm(x, gain, 1e-5, other)
    wanted, sum_ = plain.rms_norm(x, gain, 1e-5, other)
    yield "rmsnorm", got, wanted
    yield "rmsnorm, residual", total, sum_
    yield "silu_mul", silu_mul.silu_mul(x), plain.silu_mul(x.double())
    q = torch.randn(5, scale.heads, scale.depth, device=device).to(dtype)
    k, v = (torch.randn(5, scale.kv_heads, scale.depth, device=device).to(dtype) for _ in range(2))
    one, two = (torch.randn(scale.depth, device=device).to(dtype) for _ in range(2))
    norms = (one, two, 1e-6)
    angles = torch.rand(64, scale.depth // 2, device=device)
    keys, values = _cache(scale, device, dtype)
    mine = keys.clone(), values.clone()
    places = torch.arange(5, device=device)
    slots = places * 7 + 3
    turn = angles.cos(), angles.sin()
    meta = BatchMeta(places, slots, places, [], [], [])
    args = RopeArgs(q, k, v, norms, rope=turn, keys=keys, values=values, meta=meta)
    got = rope.rope_and_store(replace(args, keys=mine[0], values=mine[1]))
    wanted = plain.rope_and_store(args)
    yield "rope", got, wanted
    yield "rope, keys stored", mine[0], keys
    yield "rope, values stored", mine[1], values


def _double(weight: Tensor) -> PlainLinear:
    return PlainLinear(weight.double(), None)


def _products(
    device: torch.device, scale: Scale, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor, Tensor]]:
    depth, width, eps = scale.hidden, scale.hidden + 32, 1e-5
    up = (torch.randn(2 * width, depth, device=device) / depth**0.5).to(dtype)
    down = (torch.randn(depth, width, device=device) / width**0.5).to(dtype)
    gain = torch.randn(depth, device=device).to(dtype)
    table = torch.randn(90, depth, device=device).to(dtype)
    scratch, plain = skinny.Scratch(device), ReferenceOps()
    for rows in (1, 16, 33):
        tokens = torch.arange(rows, device=device, dtype=torch.int32)
        stream = skinny.embed_stream(tokens, table, gain)
        wide = new_stream(table[:rows].double(), gain.double())
        name = f"few rows, {rows}"
        yield f"{name}: enter", stream.scaled, wide.scaled
        got = skinny.norm_linear(stream, up[:width], eps=eps, scratch=scratch)
        yield f"{name}: normed", got, plain.norm_linear(_double(up[:width]), wide, eps)
        got = skinny.norm_linear(stream, up, eps=eps, gated=True, scratch=scratch)
        wanted = plain.norm_linear(_double(up), wide, eps, gated=True)
        yield f"{name}: normed, gate", got, wanted
        then = skinny.linear_add(got, down, onto=stream, gain=gain, scratch=scratch)
        wide = plain.linear_add(_double(down), got.double(), wide, gain.double())
        yield f"{name}: added", then.x, wide.x
        yield f"{name}: added, scaled", then.scaled, wide.scaled
        yield f"{name}: added, squares", then.squares.sum(0)[:rows], wide.squares.sum(0)


def _choosing(
    device: torch.device, scale: Scale, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor, Tensor]]:
    rows = 4
    logits = (3 * torch.randn(rows, scale.vocabulary, device=device)).to(dtype)
    keys = [1, -5, 1 << 60, 7]
    picked = sample.no_picks(rows, device)
    heat = torch.tensor([0.0, 0.7, 1.0, 2.0], device=device)
    zeros = torch.zeros(rows, dtype=torch.int32, device=device)
    how = SamplingRows(
        slots=torch.arange(rows, dtype=torch.int32, device=device),
        temperatures=heat,
        keys=torch.tensor(keys, device=device),
        top_k=zeros,
        top_p=torch.ones(rows, device=device),
        filtered=False,
    )
    sample.sample(logits, picked, how)
    noise = gumbel(keys, torch.arange(scale.vocabulary)).to(device)
    heated = logits.float() / heat.clamp_min(1e-6)[:, None] + noise
    wanted = torch.where(heat > 0, heated.argmax(-1), logits.float().argmax(-1))
    yield "sample", sample.picked_tokens(picked), wanted
    picked = sample.no_picks(rows, device)
    k, p = [0, 5, 0, 40], [1.0, 1.0, 0.7, 0.9]
    filters = {
        "top_k": torch.tensor(k, dtype=torch.int32, device=device),
        "top_p": torch.tensor(p, device=device),
    }
    sample.sample(logits, picked, replace(how, **filters, filtered=True))
    kept = keep(logits.float() / heat.clamp_min(1e-6)[:, None], k, p) + noise
    wanted = torch.where(heat > 0, kept.argmax(-1), logits.float().argmax(-1))
    yield "sample, filtered", sample.picked_tokens(picked), wanted


__all__ = ["SMALL", "Scale", "Verdict", "check"]
