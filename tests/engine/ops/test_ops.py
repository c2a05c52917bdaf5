"""Each Triton kernel, in the interpreter, and each CPU operation, compiled or not, against its
torch reference on small odd shapes."""

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from drawloom.engine.kernels.types import BatchMeta, RopeArgs
from drawloom.engine.ops.base import Ops
from drawloom.engine.ops.cpu import CpuOps, _padded
from drawloom.engine.ops.reference import ReferenceOps
from drawloom.engine.ops.triton import TritonOps

DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
OPS: dict[str, Callable[[], Ops]] = {
    "triton": TritonOps,
    "native": CpuOps,
    "torch": lambda: CpuOps(compiled=False),
}
backends = pytest.mark.parametrize("backend", OPS)


def _meta(queries: list[int], contexts: list[int], size: int, blocks: int, seed: int) -> BatchMeta:
    order = list(range(blocks))
    random.Random(seed).shuffle(order)
    tables = [[order.pop() for _ in range(-(-c // size))] for c in contexts]
    positions = [p for q, c in zip(queries, contexts, strict=True) for p in range(c - q, c)]
    slots = [
        table[p // size] * size + p % size
        for q, c, table in zip(queries, contexts, tables, strict=True)
        for p in range(c - q, c)
    ]
    rows = torch.tensor([sum(queries[: i + 1]) - 1 for i in range(len(queries))])
    return BatchMeta(torch.tensor(positions), torch.tensor(slots), rows, queries, contexts, tables)


def _cache(
    blocks: int, size: int, heads: int, depth: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    memory = torch.randn(2, heads, blocks, size, depth).to(dtype)
    return memory[0].permute(1, 2, 0, 3), memory[1].permute(1, 2, 0, 3)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("residual", [False, True])
@backends
def test_rms_norm(backend: str, dtype: torch.dtype, tolerance: float, residual: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 70).to(dtype), torch.randn(70).to(dtype)
    other = torch.randn(3, 70).to(dtype) if residual else None
    got, wanted = (ops.rms_norm(x, weight, 1e-6, other) for ops in (OPS[backend](), ReferenceOps()))
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@backends
def test_silu_mul(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x = (9 * torch.randn(3, 2 * 50)).to(dtype)
    if backend != "triton":  # whose interpreter warns of what a GPU silently does
        x[0, :3] = torch.tensor([-300.0, 300.0, 0.0])
    got, wanted = OPS[backend]().silu_mul(x), ReferenceOps().silu_mul(x)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@backends
def test_rope_and_store(backend: str, dtype: torch.dtype, tolerance: float, normed: bool) -> None:
    torch.manual_seed(0)
    size, heads, kv_heads, depth = 4, 4, 2, 24
    meta = _meta([3, 1], [5, 6], size, 6, seed=1)
    q, k, v = (torch.randn(4, h, depth).to(dtype) for h in (heads, kv_heads, kv_heads))
    norms = (torch.randn(depth).to(dtype), torch.randn(depth).to(dtype), 1e-6) if normed else None
    rope = (torch.randn(16, depth // 2), torch.randn(16, depth // 2))
    got = _cache(6, size, kv_heads, depth, dtype)
    wanted = (got[0].clone(), got[1].clone())
    a = OPS[backend]().rope_and_store(RopeArgs(q, k, v, norms, rope, *got, meta))
    b = ReferenceOps().rope_and_store(RopeArgs(q, k, v, norms, rope, *wanted, meta))
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@backends
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("queries", "contexts"),
    [
        ([1, 1, 1], [1, 17, 40]),
        ([1, 1, 1, 1, 1], [40, 33, 17, 20, 31]),
        ([5, 1, 13], [5, 33, 20]),
        ([18], [35]),
    ],
    ids=["decode", "decode-together", "mixed", "chunk"],
)
@pytest.mark.parametrize("window", [0, 7])
def test_attention(
    backend: str,
    dtype: torch.dtype,
    tolerance: float,
    queries: list[int],
    contexts: list[int],
    window: int,
) -> None:
    torch.manual_seed(0)
    size, heads, kv_heads, depth = 16, 6, 2, 24
    meta = _meta(queries, contexts, size, 12, seed=2)
    meta.window = window
    if window:  # blocks behind it are gone
        for row, (count, context) in enumerate(zip(queries, contexts, strict=True)):
            for block in range((context - count - window + 1) // size):
                meta.tables[row][block] = -1
    keys, values = _cache(12, size, kv_heads, depth, dtype)
    q = torch.randn(sum(queries), heads, depth).to(dtype)
    got, wanted = (
        OPS[backend]().attention(q, keys, values, meta),
        ReferenceOps().attention(q, keys, values, meta),
    )
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 33, 101])
@pytest.mark.parametrize("outputs", [40, 5000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_packed_weights_compute_what_plain_ones_do(
    rows: int,
    outputs: int,
    bias: bool,
    compiled: bool,
    dtype: torch.dtype,
    tolerance: float,
    count: int,
    threads: Callable[[int], None],
) -> None:
    threads(count)
    torch.manual_seed(0)
    weight, x = torch.randn(outputs, 32).to(dtype), torch.randn(rows, 32).to(dtype)
    offset = torch.randn(outputs).to(dtype) if bias else None
    got = CpuOps(compiled=compiled).linear(weight, offset)(x)
    wanted = ReferenceOps().linear(weight, offset)(x)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_product_is_the_same_to_the_bit_whatever_is_beside_it(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    linear, x = CpuOps().linear(torch.randn(200, 576).to(dtype), None), torch.randn(60, 576)
    rows = x.to(dtype)
    wanted = linear(rows)
    for first, end in ((0, 1), (5, 7), (10, 13), (3, 20), (50, 60)):
        assert torch.equal(linear(rows[first:end]), wanted[first:end])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("heads", "depth"), [(2, 32), (6, 64), (8, 128), (16, 32), (10, 20)])
@pytest.mark.parametrize("window", [0, 90])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_compiled_attention_over_many_tiles(
    heads: int,
    depth: int,
    window: int,
    dtype: torch.dtype,
    tolerance: float,
    count: int,
    threads: Callable[[int], None],
) -> None:
    """Whole and partial tiles of queries and keys, depths that are padded and ones that are not."""
    threads(count)
    torch.manual_seed(0)
    meta = _meta([1, 119, 1], [300, 140, 2], 16, 32, seed=3)
    meta.window = window
    keys, values = _cache(32, 16, 2, depth, dtype)
    q = (3 * torch.randn(121, heads, depth)).to(dtype)
    wanted = ReferenceOps().attention(q, keys, values, meta)
    got = CpuOps().attention(q, keys, values, meta)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2])
def test_compiled_attention_of_a_token_is_the_same_to_the_bit_however_it_is_batched(
    dtype: torch.dtype, count: int, threads: Callable[[int], None]
) -> None:
    threads(count)
    torch.manual_seed(0)
    keys, values = _cache(32, 16, 2, 64, dtype)
    q = torch.randn(150, 6, 64).to(dtype)
    together = _meta([100, 50], [260, 130], 16, 32, seed=3)
    wanted = CpuOps().attention(q, keys, values, together)
    for first, end, sequence, context in ((7, 8, 0, 168), (30, 100, 0, 260), (100, 103, 1, 83)):
        alone = _meta([end - first], [context], 16, 32, seed=3)
        alone.tables = [together.tables[sequence]]
        got = CpuOps().attention(q[first:end], keys, values, alone)
        assert torch.equal(got, wanted[first:end])


def test_what_is_no_number_stays_so() -> None:
    x = torch.full((2, 8), torch.nan)
    ops = CpuOps()
    assert ops.rms_norm(x, torch.ones(8), 1e-6, None)[0].isnan().all()
    assert ops.silu_mul(x).isnan().all()
    meta = _meta([1], [3], 4, 1, seed=0)
    keys, values = _cache(1, 4, 2, 8, torch.float32)
    assert ops.attention(torch.full((1, 2, 8), torch.nan), keys, values, meta).isnan().all()


def test_products_have_one_of_few_heights() -> None:
    heights = {rows: _padded(torch.zeros(rows, 1)).shape[0] for rows in range(1, 2049)}
    assert len(set(heights.values())) <= 16 * 8
    assert all(0 <= padded - rows <= rows / 16 for rows, padded in heights.items())
