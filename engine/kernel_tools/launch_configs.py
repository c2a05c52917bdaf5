"""Catalogue of kernel launches: every kernel as the benchmark's models launch it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from drawloom.engine.kernel_tools.aot_compile import Compiled, compile_for, recording
from drawloom.engine.kernels import (
    block_copy,
    cascade,
    decode,
    feed,
    prefill,
    rmsnorm,
    rope,
    sample,
    silu_mul,
    skinny_gemm,
)
from drawloom.engine.kernels.tuning import DECODE, PREFILL, Key, Tilings
from drawloom.engine.kernels.types import (
    BatchMeta,
    DecodeBatch,
    KeyParts,
    PrefillBatch,
    RopeArgs,
    SamplingRows,
    Stream,
)


@dataclass(frozen=True, slots=True)
class Heads:
    """Describe the attention heads of a model and the widths of its layers."""

    name: str
    heads: int
    kv_heads: int
    depth: int
    hidden: int
    inner: int
    qk_norm: bool


SHAPES = (
    Heads("Llama-3.1-8B", heads=32, kv_heads=8, depth=128, hidden=4096, inner=14336, qk_norm=False),
    Heads("Llama-3.2-1B", heads=32, kv_heads=8, depth=64, hidden=2048, inner=8192, qk_norm=False),
    Heads("Qwen3-0.6B", heads=16, kv_heads=8, depth=128, hidden=1024, inner=3072, qk_norm=True),
)
_BLOCKS, _SIZE, _LAYERS, _BATCH, _PARTS = 1024, 16, 2, 32, 66


def forms(shape: Heads, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield a name and a launch for each form; nothing is read from the tensors."""
    new = partial(torch.empty, dtype=torch.bfloat16, device=device)
    ints = partial(torch.empty, dtype=torch.int32, device=device)
    store = new(_BLOCKS, _LAYERS, 2, shape.kv_heads, _SIZE, shape.depth)
    layer = store.transpose(3, 4)[:, 1]
    keys, values = layer[:, 0], layer[:, 1]
    yield from _attention(shape, keys, values, device)
    q, k = (new(_BATCH, n, shape.depth) for n in (shape.heads, shape.kv_heads))
    norms = (new(shape.depth), new(shape.depth), 1e-6) if shape.qk_norm else None
    turn = torch.empty(4096, shape.depth // 2, dtype=torch.float32, device=device)
    meta = BatchMeta(ints(_BATCH), ints(_BATCH), ints(_BATCH), [], [], [])
    args = RopeArgs(q, k, k, norms, rope=(turn, turn), keys=keys, values=values, meta=meta)
    yield "rope", lambda: rope.rope_and_store(args)
    x, gain = new(_BATCH, shape.hidden), new(shape.hidden)
    yield "rmsnorm", lambda: rmsnorm.rms_norm(x, gain, 1e-6, x)
    yield "silu_mul", lambda: silu_mul.silu_mul(new(_BATCH, 2 * shape.inner))
    yield from _products(shape, device)
    rows = partial(torch.empty, _BATCH, device=device)
    logits, picked = new(_BATCH, 128256), torch.empty(64, dtype=torch.int64, device=device)
    how = SamplingRows(
        slots=ints(_BATCH),
        temperatures=rows(),
        keys=rows(dtype=torch.int64),
        top_k=ints(_BATCH),
        top_p=rows(),
        filtered=False,
    )
    yield "sample", lambda: sample.sample(logits, picked, how)
    yield "sample, filtered", lambda: sample.sample(logits, picked, replace(how, filtered=True))
    yield (
        "feed",
        lambda: feed.feed(
            ints(_BATCH),
            ints(_BATCH),
            ints(64),
            ints(64),
            tokens=ints(_BATCH),
            picked=picked,
            tables=ints(64, 128),
        ),
    )
    yield "gather", lambda: block_copy.gather(store, ints(8), new(8, *store.shape[1:]))
    yield "scatter", lambda: block_copy.scatter(store, ints(8), new(8, *store.shape[1:]))
    yield "copy", lambda: block_copy.copy(store, ints(8, 3))


def _attention(
    shape: Heads, keys: Tensor, values: Tensor, device: torch.device
) -> Iterator[tuple[str, Callable[[], object]]]:
    new = partial(torch.empty, dtype=torch.bfloat16, device=device)
    ints = partial(torch.empty, dtype=torch.int32, device=device)
    q = new(_BATCH, shape.heads, shape.depth)
    parts = KeyParts.allocate(_BATCH, shape.heads, shape.depth, _PARTS, device)
    plain = DecodeBatch(ints(_BATCH, 128), ints(_BATCH), ints(_BATCH))
    yield "split", lambda: decode.split_keys(plain, parts)
    key = (shape.heads, shape.kv_heads, shape.depth)
    yield (
        "decode",
        lambda: _each(DECODE, (*key, False), partial(decode.decode, q, keys, values, plain, parts)),
    )
    members = ints(4 * cascade.tile_rows(shape.heads, shape.kv_heads))
    shared = DecodeBatch(
        plain.tables, plain.slots, plain.contexts, shared_tokens=ints(_BATCH), shared_rows=members
    )
    wide = partial(torch.empty, dtype=torch.float32, device=device)
    shared_parts = (wide(8, _BATCH, shape.heads, shape.depth), wide(8, _BATCH, shape.heads))
    yield "split for cascade", lambda: decode.split_keys(shared, parts)
    yield "cascade", lambda: cascade.cascade(q, keys, values, shared, parts, shared_parts)

    def chunk(window: int) -> object:
        at = PrefillBatch(
            plain.tables, plain.slots, plain.contexts, ints(_BATCH + 1), ints(2, 64), window
        )
        size = prefill.tile_queries(shape.heads, shape.kv_heads, shape.depth, 4096)
        return prefill.prefill(new(4096, shape.heads, shape.depth), keys, values, at, size)

    yield "prefill", lambda: _each(PREFILL, key, partial(chunk, 0))
    yield "prefill, windowed", lambda: _each(PREFILL, key, partial(chunk, 4096))


def _each(tilings: Tilings, key: Key, launch: Callable[[], object]) -> None:
    """Launch with every tiling that may be chosen."""
    before = tilings.of(key)
    for option in tilings.options:
        tilings.use(key, option)
        launch()
    tilings.use(key, before)


def _products(shape: Heads, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    new = partial(torch.empty, dtype=torch.bfloat16, device=device)
    scratch = skinny_gemm.Scratch(device)
    gain = new(shape.hidden)
    heads = shape.heads * shape.depth
    qkv = new(heads + 2 * shape.kv_heads * shape.depth, shape.hidden)
    up, down = new(2 * shape.inner, shape.hidden), new(shape.hidden, shape.inner)
    for rows in (16, 32, 64) if shape == SHAPES[0] else (16,):  # larger tiles do not depend on it
        tokens = torch.empty(rows, dtype=torch.int32, device=device)
        yield (
            f"enter, {rows}",
            partial(skinny_gemm.embed_stream, tokens, new(1000, shape.hidden), gain),
        )
        stream = Stream(
            x=new(rows, shape.hidden),
            scaled=new(rows, shape.hidden),
            squares=torch.empty(-(-shape.hidden // 64), rows, dtype=torch.float32, device=device),
        )
        normed = partial(skinny_gemm.norm_linear, stream, eps=1e-6, scratch=scratch)
        yield f"qkv, {rows}", partial(normed, qkv)
        yield f"gate_up, {rows}", partial(normed, up, gated=True)
        added = partial(skinny_gemm.linear_add, onto=stream, gain=gain, scratch=scratch)
        yield f"o, {rows}", partial(added, new(rows, heads), new(shape.hidden, heads))
        yield f"down, {rows}", partial(added, new(rows, shape.inner), down)


def compiled(chips: tuple[int, ...], *, representative: bool = False) -> Iterator[Compiled]:
    """Compile every kernel for each chip; yield equal machine code once.

    Args:
        representative: compile only the first launch of each kernel, not all shapes and tilings.
    """
    seen: set[object] = set()
    for shape in SHAPES:
        for name, call in forms(shape, torch.device("meta")):
            for chip in chips:
                with recording(chip) as launches:
                    call()
                for launch in launches:
                    kernel = (launch.name, chip)
                    if representative and kernel in seen:
                        continue
                    made = replace(compile_for(launch, chip), form=f"{shape.name}: {name}")
                    if (key := (*kernel, made.binary)) not in seen:
                        seen |= {kernel, key}
                        yield made


__all__ = ["SHAPES", "Heads", "compiled", "forms"]
