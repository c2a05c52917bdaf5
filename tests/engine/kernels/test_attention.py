"""Attention over a paged cache: each kernel, in the interpreter, against its torch reference."""

import itertools
import random

import pytest
import torch
from torch import Tensor

from drawloom.engine.kernels import cascade, decode, prefill
from drawloom.engine.kernels.types import DecodeBatch, KeyParts, PrefillBatch
from drawloom.engine.ops import reference

DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
SIZE, KV_HEADS = 16, 2
CPU = torch.device("cpu")


def _cache(blocks: int, depth: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As a GPU has it: [blocks, layers, 2, kv_heads, size, d], the second layer of three."""
    memory = torch.randn(blocks, 3, 2, KV_HEADS, SIZE, depth).to(dtype)
    memory[:, (0, 2)] = torch.nan
    layer = memory.transpose(3, 4)[:, 1]
    return layer[:, 0], layer[:, 1]


def _tables(contexts: list[int], blocks: int, shared: int = 0) -> tuple[Tensor, Tensor]:
    """Tables of slots in another order than the rows, all blocks shuffled; the first `shared`
    blocks are everybody's."""
    order = list(range(1, blocks))
    random.Random(3).shuffle(order)
    width = max(-(-c // SIZE) for c in contexts) + 1
    slots = list(range(len(contexts)))[::-1]
    tables = torch.zeros(len(contexts) + 1, width, dtype=torch.int32)
    common = [order.pop() for _ in range(shared)]
    for slot, context in zip(slots, contexts, strict=True):
        mine = common + [order.pop() for _ in range(-(-context // SIZE) - shared)]
        tables[slot, : len(mine)] = torch.tensor(mine, dtype=torch.int32)
    return tables, torch.tensor(slots, dtype=torch.int32)


def _ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize(
    ("contexts", "parts", "group"),
    [([1, 17, 300], 2, 3), ([260, 0, 3], 6, 4), ([5], 1, 1), ([140, 141], 1, 16)],
    ids=["uneven", "with-padding", "alone", "one-part-each"],
)
def test_decode(
    contexts: list[int], parts: int, group: int, window: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    depth, heads = 24, group * KV_HEADS
    keys, values = _cache(40, depth, dtype)
    at = DecodeBatch(*_tables(contexts, 40), _ints(contexts), window)
    room = KeyParts.allocate(len(contexts), heads, depth, parts, CPU)
    decode.split_keys(at, room)
    q, out = (
        torch.randn(len(contexts), heads, depth).to(dtype),
        torch.empty(len(contexts), heads, depth),
    )
    out = torch.full_like(q, torch.nan)
    decode.decode(q, keys, values, at, room, out)
    wanted = reference.decode(q, keys, values, at)
    torch.testing.assert_close(out, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("room", [1, 5, 40])
def test_parts_cover_every_key_once_and_are_about_even(room: int, window: int) -> None:
    contexts = [1, 640, 0, 64, 65, 2000]
    at = DecodeBatch(
        torch.zeros(6, 1, dtype=torch.int32), _ints([5, 4, 3, 2, 1, 0]), _ints(contexts), window
    )
    parts = KeyParts.allocate(6, 2, 16, room, CPU)
    decode.split_keys(at, parts)
    seen: dict[int, list[tuple[int, int]]] = {}
    for part, record in enumerate(parts.records.tolist()):
        row, begin, end, slot, oldest, first, count, _ = record
        if row >= 0:
            assert first <= part < first + count and slot == 5 - row
            assert oldest == contexts[row] - (window or 1 << 30)
            seen.setdefault(row, []).append((begin, end))
    for row, context in enumerate(contexts):
        pieces = seen[row]
        first, last = parts.offsets[row : row + 2].tolist()
        assert len(pieces) == last - first >= 1
        if context:
            assert pieces[0][0] <= max(0, context - window if window else 0)
            assert pieces[-1][1] == context
            assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
    longest = max(end - begin for pieces in seen.values() for begin, end in pieces)
    fair = sum(min(c, window or c) for c in contexts) / room
    assert longest <= max(2 * decode.TILE, fair + 2 * decode.TILE)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_cascade(dtype: torch.dtype, tolerance: float) -> None:
    """Two rows share 144 tokens, one has nothing in common, one is padding."""
    torch.manual_seed(0)
    depth, group, shared = 16, 4, 9
    heads = group * KV_HEADS
    contexts = [150, 145, 200]
    tables, slots = _tables(contexts[:2], 60, shared)
    other, _ = _tables(contexts[2:], 30)
    width = max(tables.shape[1], other.shape[1])
    table = torch.zeros(6, width, dtype=torch.int32)
    table[:2, : tables.shape[1]] = tables[:2]
    table[4, : other.shape[1]] = other[0] + 0
    rows = [0, 2, 1, 3]
    contexts = [150, 200, 145, 0]
    at = DecodeBatch(
        table,
        _ints([int(slots[0]), 4, int(slots[1]), 5]),
        _ints(contexts),
        shared_tokens=_ints([shared * SIZE, 0, shared * SIZE, 0]),
        shared_rows=_ints([0, 2, *[-1] * 14, *[-1] * 16]),
    )
    assert cascade.tile_rows(heads, KV_HEADS) == 16
    keys, values = _cache(60, depth, dtype)
    room = KeyParts.allocate(4, heads, depth, 3, CPU)
    decode.split_keys(at, room)
    before = (torch.full((2, 4, heads, depth), torch.nan), torch.full((2, 4, heads), torch.nan))
    q = torch.randn(len(rows), heads, depth).to(dtype)
    out = torch.full_like(q, torch.nan)
    cascade.cascade(q, keys, values, at, room, before, out)
    wanted = reference.decode(q, keys, values, at)
    torch.testing.assert_close(out, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("window", [0, 21])
@pytest.mark.parametrize(
    ("lengths", "contexts", "group"),
    [([5, 1, 70], [5, 133, 90], 2), ([18], [35], 3), ([64], [200], 1)],
    ids=["mixed", "chunk", "after-a-prefix"],
)
def test_prefill(
    lengths: list[int],
    contexts: list[int],
    group: int,
    window: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    torch.manual_seed(0)
    depth, heads = 24, group * KV_HEADS
    keys, values = _cache(40, depth, dtype)
    tables, slots = _tables(contexts, 40)
    size = prefill.tile_queries(heads, KV_HEADS, depth, max(lengths))
    tiles = prefill.tiles(lengths, size)
    starts = _ints([sum(lengths[:i]) for i in range(len(lengths) + 1)])
    at = PrefillBatch(
        tables,
        slots,
        _ints(contexts),
        starts,
        torch.tensor(tiles, dtype=torch.int32).T.contiguous(),
        window,
    )
    q = torch.randn(sum(lengths), heads, depth).to(dtype)
    out = torch.full_like(q, torch.nan)
    prefill.prefill(q, keys, values, at, size, out)
    wanted = reference.prefill(q, keys, values, at)
    torch.testing.assert_close(out, wanted, rtol=tolerance, atol=tolerance)


def test_tiles_cover_every_token_once_and_the_longest_come_first() -> None:
    found = prefill.tiles([1, 130, 64], 64)
    assert sorted(found) == [(0, 0), (1, 0), (1, 64), (1, 128), (2, 0)]
    assert found.index((1, 128)) < found.index((1, 0))
