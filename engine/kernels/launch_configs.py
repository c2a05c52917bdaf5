"""Every kernel in the forms that the models of the benchmark launch it in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

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
from drawloom.engine.kernels.aot_compile import Compiled, compile_for, recording
from drawloom.engine.kernels.tuning import DECODE, PREFILL, Key, Tilings
from drawloom.engine.ops.base import Stream


@dataclass(frozen=True, slots=True)
class Heads:
    """What the attention of a model looks like, and the width of its layers."""

    name: str
    heads: int
    kv_heads: int
    depth: int
    hidden: int
    inner: int
    qk_norm: bool


SHAPES = (
    Heads("Llama-3.1-8B", 32, 8, 128, 4096, 14336, False),
    Heads("Llama-3.2-1B", 32, 8, 64, 2048, 8192, False),
    Heads("Qwen3-0.6B", 16, 8, 128, 1024, 3072, True),
)
_BLOCKS, _SIZE, _LAYERS, _BATCH, _PARTS = 1024, 16, 2, 32, 66


def forms(shape: Heads, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """What each launcher is called with, by a name; nothing is read from the tensors."""
    new = partial(torch.empty, dtype=torch.bfloat16, device=device)
    ints = partial(torch.empty, dtype=torch.int32, device=device)
    store = new(_BLOCKS, _LAYERS, 2, shape.kv_heads, _SIZE, shape.depth)
    layer = store.transpose(3, 4)[:, 1]
    keys, values = layer[:, 0], layer[:, 1]
    yield from _attention(shape, keys, values, device)
    q, k = (new(_BATCH, n, shape.depth) for n in (shape.heads, shape.kv_heads))
    norms = (new(shape.depth), new(shape.depth), 1e-6) if shape.qk_norm else None
    turn = torch.empty(4096, shape.depth // 2, dtype=torch.float32, device=device)
    yield (
        "rope",
        lambda: rope.rope_and_store(
            q, k, k, norms, (turn, turn), keys, values, ints(_BATCH), ints(_BATCH)
        ),
    )
    x, gain = new(_BATCH, shape.hidden), new(shape.hidden)
    yield "rmsnorm", lambda: rmsnorm.rms_norm(x, gain, 1e-6, x)
    yield "silu_mul", lambda: silu_mul.silu_mul(new(_BATCH, 2 * shape.inner))
    yield from _products(shape, device)
    rows = partial(torch.empty, _BATCH, device=device)
    pick = partial(
        sample.sample, new(_BATCH, 128256), torch.empty(64, dtype=torch.int64, device=device),
        ints(_BATCH), rows(), rows(dtype=torch.int64), ints(_BATCH), rows(),
    )  # fmt: skip
    yield "sample", partial(pick, False)
    yield "sample, filtered", partial(pick, True)
    yield "feed", lambda: feed.feed(
        ints(_BATCH), ints(_BATCH), ints(64), ints(64), ints(_BATCH),
        torch.empty(64, dtype=torch.int64, device=device), ints(64, 128),
    )  # fmt: skip
    yield "gather", lambda: block_copy.gather(store, ints(8), new(8, *store.shape[1:]))
    yield "scatter", lambda: block_copy.scatter(store, ints(8), new(8, *store.shape[1:]))
    yield "copy", lambda: block_copy.copy(store, ints(8, 3))


def _attention(
    shape: Heads, keys: Tensor, values: Tensor, device: torch.device
) -> Iterator[tuple[str, Callable[[], object]]]:
    new = partial(torch.empty, dtype=torch.bfloat16, device=device)
    ints = partial(torch.empty, dtype=torch.int32, device=device)
    q = new(_BATCH, shape.heads, shape.depth)
    parts = decode.Parts.room(_BATCH, shape.heads, shape.depth, _PARTS, device)
    plain = decode.Decodes(ints(_BATCH, 128), ints(_BATCH), ints(_BATCH))
    yield "cut", lambda: decode.cut(plain, parts)
    key = (shape.heads, shape.kv_heads, shape.depth)
    yield (
        "decode",
        lambda: _each(DECODE, (*key, False), partial(decode.decode, q, keys, values, plain, parts)),
    )
    members = ints(4 * cascade.queries(shape.heads, shape.kv_heads))
    shared = decode.Decodes(
        plain.tables, plain.seats, plain.contexts, since=ints(_BATCH), members=members
    )
    wide = partial(torch.empty, dtype=torch.float32, device=device)
    before = (wide(8, _BATCH, shape.heads, shape.depth), wide(8, _BATCH, shape.heads))
    yield "cut for cascade", lambda: decode.cut(shared, parts)
    yield "cascade", lambda: cascade.cascade(q, keys, values, shared, parts, before)

    def chunk(window: int) -> object:
        at = prefill.Prefills(
            plain.tables, plain.seats, plain.contexts, ints(_BATCH + 1), ints(2, 64), window
        )
        size = prefill.queries(shape.heads, shape.kv_heads, shape.depth, 4096)
        return prefill.prefill(new(4096, shape.heads, shape.depth), keys, values, at, size)

    yield "prefill", lambda: _each(PREFILL, key, partial(chunk, 0))
    yield "prefill, windowed", lambda: _each(PREFILL, key, partial(chunk, 4096))


def _each(tilings: Tilings, key: Key, launch: Callable[[], object]) -> None:
    """With every tiling that may be chosen."""
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
    for rows in (16, 32, 64) if shape == SHAPES[0] else (16,):  # tiles of more do not depend on it
        tokens = torch.empty(rows, dtype=torch.int32, device=device)
        yield f"enter, {rows}", partial(skinny_gemm.enter, tokens, new(1000, shape.hidden), gain)
        stream = Stream(
            new(rows, shape.hidden), new(rows, shape.hidden),
            torch.empty(-(-shape.hidden // 64), rows, dtype=torch.float32, device=device),
        )  # fmt: skip
        normed = partial(skinny_gemm.normed, stream, eps=1e-6, scratch=scratch)
        yield f"qkv, {rows}", partial(normed, qkv)
        yield f"gate_up, {rows}", partial(normed, up, gated=True)
        added = partial(skinny_gemm.added, onto=stream, gain=gain, scratch=scratch)
        yield f"o, {rows}", partial(added, new(rows, heads), new(shape.hidden, heads))
        yield f"down, {rows}", partial(added, new(rows, shape.inner), down)


def compiled(chips: tuple[int, ...], shapes: tuple[Heads, ...] = SHAPES) -> Iterator[Compiled]:
    """All of them, compiled for each chip; a form that two shapes have in common comes once."""
    seen = set()
    for shape in shapes:
        for name, call in forms(shape, torch.device("meta")):
            for chip in chips:
                with recording(chip) as launches:
                    call()
                for launch in launches:
                    made = replace(compile_for(launch, chip), form=f"{shape.name}: {name}")
                    if (key := (launch.name, made.binary, chip)) not in seen:
                        seen.add(key)
                        yield made


__all__ = ["SHAPES", "Heads", "compiled", "forms"]
