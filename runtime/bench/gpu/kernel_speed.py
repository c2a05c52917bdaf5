"""Each kernel's speed by itself, as a share of what the machine can do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.engine.kernels import cascade, decode, prefill, skinny_gemm
from drawloom.engine.kernels.types import DecodeBatch, KeyParts, PrefillBatch, Stream
from drawloom.runtime.bench.roofline import DeviceLimits, best_seconds

T = TypeVar("T")
_SIZE = 16
_COLD = 256 << 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """Describe one layer of the model and the contexts that kernels are timed on."""

    heads: int = 32
    kv_heads: int = 8
    depth: int = 128
    hidden: int = 4096
    inner: int = 14336
    context: int = 1024
    batches: tuple[int, ...] = (1, 32, 256)
    chunk: int = 4096
    shared: int = 8192
    alike: int = 64


@dataclass(frozen=True, slots=True)
class Timed:
    """Microseconds of a kernel, and what it reaches: a share, or a factor over another way."""

    kernel: str
    microseconds: float
    reached: float
    of: str


def table(device: torch.device, sizes: Sizes, limits: DeviceLimits) -> Iterator[Timed]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    yield from _decodes(device, sizes, limits, dtype)
    yield from _prefills(device, sizes, limits, dtype)
    yield from _products(device, sizes, limits, dtype)


def _ints(values: list[int] | Tensor, device: torch.device) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int32).to(device)


Layers = list[tuple[Tensor, Tensor]]


def _cache(sizes: Sizes, blocks: int, device: torch.device, dtype: torch.dtype) -> Layers:
    """Keys and values of as many layers as do not fit a second-level cache together."""
    each = blocks * 2 * sizes.kv_heads * _SIZE * sizes.depth * dtype.itemsize
    layers = max(1, min(32, _COLD // each)) if device.type == "cuda" else 1
    shape = (blocks, layers, 2, sizes.kv_heads, _SIZE, sizes.depth)
    store = torch.randn(shape, dtype=dtype, device=device).transpose(3, 4)
    return [(store[:, at, 0], store[:, at, 1]) for at in range(layers)]


def _batch(
    sizes: Sizes, contexts: list[int], shared: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Layers, DecodeBatch]:
    """Queries, the cache, and where things are in it: every block once, but the shared ones."""
    width, common = -(-max(contexts) // _SIZE), shared // _SIZE
    rows = torch.zeros(len(contexts), width, dtype=torch.int32)
    rows[:, :common] = torch.arange(common)
    own = width - common
    rows[:, common:] = common + torch.randperm(own * len(contexts)).view(-1, own)
    layers = _cache(sizes, common + own * len(contexts), device, dtype)
    q = torch.randn(len(contexts), sizes.heads, sizes.depth, dtype=dtype, device=device)
    at = DecodeBatch(
        rows.to(device), _ints(list(range(len(contexts))), device), _ints(contexts, device)
    )
    return q, layers, at


def _parts(sizes: Sizes, batch: int, device: torch.device) -> KeyParts:
    spare = decode.spare_parts(sizes.kv_heads, batch)
    return KeyParts.allocate(batch, sizes.heads, sizes.depth, spare, device)


def _decodes(
    device: torch.device, sizes: Sizes, limits: DeviceLimits, dtype: torch.dtype
) -> Iterator[Timed]:
    token = 2 * sizes.kv_heads * sizes.depth * dtype.itemsize
    cases = {f"decode, {n} x {sizes.context}": [sizes.context] * n for n in sizes.batches}
    most = max(sizes.batches)
    cases[f"decode, {most} of very uneven lengths"] = [
        max(1, sizes.context * 16 // (row + 1)) for row in range(most)
    ]
    for name, contexts in cases.items():
        q, layers, at = _batch(sizes, contexts, 0, device, dtype)
        parts = _parts(sizes, len(contexts), device)
        decode.split_keys(at, parts)
        took = _each(partial(_decode, q, at, parts), layers, device)
        share = sum(contexts) * token / took / limits.memory
        yield Timed(name, 1e6 * took, share, "of memory")
    count, shared = sizes.alike, sizes.shared
    contexts = [shared + 16 + row % 7 for row in range(count)]
    q, layers, at = _batch(sizes, contexts, shared, device, dtype)
    parts = _parts(sizes, count, device)
    decode.split_keys(at, parts)
    plain = _each(partial(_decode, q, at, parts), layers, device)
    tile = cascade.tile_rows(sizes.heads, sizes.kv_heads)
    at.shared_tokens = _ints([shared] * count, device)
    at.shared_rows = _ints(list(range(count)) + [-1] * (-count % tile), device)
    tiles = at.shared_rows.shape[0] // tile
    before = cascade.allocate_shared(tiles, count, sizes.heads, sizes.kv_heads, sizes.depth, device)
    decode.split_keys(at, parts)
    took = _each(partial(_cascade, q, at, parts, before), layers, device)
    yield Timed(f"cascade, {count} x {shared} shared", 1e6 * took, plain / took, "x decode")


def _decode(q: Tensor, at: DecodeBatch, parts: KeyParts, layer: tuple[Tensor, Tensor]) -> Tensor:
    return decode.decode(q, *layer, at, parts)


def _cascade(
    q: Tensor,
    at: DecodeBatch,
    parts: KeyParts,
    before: tuple[Tensor, Tensor],
    layer: tuple[Tensor, Tensor],
) -> Tensor:
    return cascade.cascade(q, *layer, at, parts, before)


def _prefills(
    device: torch.device, sizes: Sizes, limits: DeviceLimits, dtype: torch.dtype
) -> Iterator[Timed]:
    length = sizes.chunk
    for prefix in (0, length):
        context = prefix + length
        table = torch.randperm(-(-context // _SIZE)).to(torch.int32)[None].to(device)
        layers = _cache(sizes, table.shape[1], device, dtype)
        q = torch.randn(length, sizes.heads, sizes.depth, dtype=dtype, device=device)
        size = prefill.tile_queries(sizes.heads, sizes.kv_heads, sizes.depth, length)
        tiles = _ints(torch.tensor(prefill.tiles([length], size)).T.contiguous(), device)
        at = PrefillBatch(
            table, _ints([0], device), _ints([context], device), _ints([0, length], device), tiles
        )
        took = _each(partial(_prefill, q, at, size), layers, device)
        pairs = length * prefix + length * (length + 1) / 2
        work = 4 * pairs * sizes.heads * sizes.depth
        yield Timed(
            f"prefill, {length} behind {prefix}",
            1e6 * took,
            work / took / limits.matmul,
            "of products",
        )


def _prefill(q: Tensor, at: PrefillBatch, size: int, layer: tuple[Tensor, Tensor]) -> Tensor:
    return prefill.prefill(q, *layer, at, size)


def _products(
    device: torch.device, sizes: Sizes, limits: DeviceLimits, dtype: torch.dtype
) -> Iterator[Timed]:
    scratch = skinny_gemm.Scratch(device)
    qkv = (sizes.heads + 2 * sizes.kv_heads) * sizes.depth
    shapes = {
        "qkv": (qkv, sizes.hidden),
        "o": (sizes.hidden, sizes.heads * sizes.depth),
        "gate_up": (2 * sizes.inner, sizes.hidden),
        "down": (sizes.hidden, sizes.inner),
    }
    for name, (width, depth) in shapes.items():
        # more copies than fit the second-level cache, one after the other
        copies = max(1, min(8, _COLD // (width * depth * dtype.itemsize)))
        if device.type != "cuda":
            copies = 1
        weights = [torch.randn(width, depth, dtype=dtype, device=device) for _ in range(copies)]
        for rows in (1, 16, 32, 64):
            x = torch.randn(rows, depth, dtype=dtype, device=device)
            all_rows = torch.arange(rows, dtype=torch.int32, device=device)
            stream = skinny_gemm.embed_stream(all_rows, x, torch.ones_like(x[0]))
            ours = _each(partial(_normed, stream, scratch), weights, device)
            theirs = _each(partial(F.linear, x), weights, device)
            share = weights[0].nbytes / ours / limits.memory
            yield Timed(f"few rows {name}, {rows}", 1e6 * ours, share, "of memory")
            yield Timed(f"  over cuBLAS, {1e6 * theirs:.0f} µs", 1e6 * ours, theirs / ours, "x")


def _normed(stream: Stream, scratch: skinny_gemm.Scratch, weight: Tensor) -> Tensor:
    return skinny_gemm.norm_linear(stream, weight, eps=1e-5, scratch=scratch)


def _each(work: Callable[[T], object], inputs: list[T], device: torch.device) -> float:
    """Return the seconds of one launch, timed over several in a row.

    A CUDA graph launches them where there is one, as launching takes longer than some kernels.
    """

    def all_() -> None:
        for one in inputs:
            work(one)

    if device.type != "cuda":
        return best_seconds(all_, device) / len(inputs)
    all_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_()
    return best_seconds(graph.replay, device) / len(inputs)


__all__ = ["Sizes", "Timed", "table"]
