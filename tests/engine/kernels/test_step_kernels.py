"""The kernels around attention, in the interpreter: sampling, what a step reads, blocks, products
of few rows."""

from functools import partial

import pytest
import torch
from torch import Tensor

from drawloom.engine.kernels import block_copy, feed, sample, skinny_gemm
from drawloom.engine.kernels.types import SamplingRows, Stream
from drawloom.engine.ops.reference import PlainLinear, ReferenceOps, new_stream
from drawloom.engine.runners.cpu_sampling import gumbel, keep
from tests.lanes import slow_unless

CPU = torch.device("cpu")


def _pick(
    logits: Tensor, temperatures: list[float], keys: list[int], k: list[int], p: list[float]
) -> list[int]:
    rows = logits.shape[0]
    picked = sample.no_picks(rows + 1, CPU)
    how = SamplingRows(
        slots=torch.arange(1, rows + 1, dtype=torch.int32),
        temperatures=torch.tensor(temperatures),
        keys=torch.tensor(keys),
        top_k=torch.tensor(k, dtype=torch.int32),
        top_p=torch.tensor(p),
        filtered=any(k) or min(p) < 1,
    )
    sample.sample(logits, picked, how)
    assert picked[0] == sample.NONE
    tokens: list[int] = sample.picked_tokens(picked[1:]).tolist()
    assert tokens == [sample.picked_token(value) for value in picked[1:].tolist()]
    return tokens


def _greedy(slots: list[int]) -> SamplingRows:
    rows = len(slots)
    return SamplingRows(
        slots=torch.tensor(slots, dtype=torch.int32),
        temperatures=torch.zeros(rows),
        keys=torch.zeros(rows, dtype=torch.int64),
        top_k=torch.zeros(rows, dtype=torch.int32),
        top_p=torch.ones(rows),
        filtered=False,
    )


def _reference(
    logits: Tensor, temperatures: list[float], keys: list[int], k: list[int], p: list[float]
) -> list[int]:
    out = logits.float().argmax(-1)
    for row, temperature in enumerate(temperatures):
        if temperature:
            values = keep(logits[row : row + 1].float() / temperature, [k[row]], [p[row]])
            out[row] = (values + gumbel([keys[row]], torch.arange(values.shape[1]))).argmax()
    tokens: list[int] = out.tolist()
    return tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [50, 9001], ids=["one-piece", "three-pieces"])
def test_sampling_is_that_of_the_other_devices(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(4, width)).to(dtype)  # in bfloat16 many are equal
    rest = [0.0, 0.7, 1.0, 2.0], [1, -5, 1 << 60, 7], [0] * 4, [1.0] * 4
    assert _pick(logits, *rest) == _reference(logits, *rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("k", "p"), [(1, 1.0), (5, 1.0), (0, 0.6), (7, 0.5), (0, 1e-6), (500, 0.9)]
)
def test_filtered_sampling_is_that_of_the_other_devices(
    dtype: torch.dtype, k: int, p: float
) -> None:
    torch.manual_seed(1)
    logits = (2 * torch.randn(6, 80)).to(dtype)
    rest = [0.0, 0.7, 1.0, 1.0, 2.0, 5.0], list(range(6)), [k] * 6, [p] * 6
    assert _pick(logits, *rest) == _reference(logits, *rest)


def test_equal_tokens_are_cut_in_their_order() -> None:
    """Of ten equal tokens three are kept: the first three, whatever the noise."""
    logits = torch.full((20, 10), 1.5)
    found = _pick(logits, [1.0] * 20, list(range(20)), [3] * 20, [1.0] * 20)
    assert set(found) == {0, 1, 2}


def test_a_row_of_padding_says_nothing() -> None:
    picked = sample.no_picks(2, CPU)
    sample.sample(torch.zeros(1, 9), picked, _greedy([-1]))
    assert picked.tolist() == [sample.NONE, sample.NONE]


def test_a_step_reads_what_the_one_before_it_said() -> None:
    picked = sample.no_picks(4, CPU)
    logits = torch.zeros(2, 40)
    logits[0, 17], logits[1, 33] = 1.0, 1.0
    sample.sample(logits, picked, _greedy([3, 1]))
    ids = torch.tensor([-1 - 3, 8, -1 - 1, 9, -1 - 0], dtype=torch.int32)  # slot 0 said nothing
    sampled = torch.tensor([3, -1, -1, 2, -1], dtype=torch.int32)
    tables = torch.zeros(4, 3, dtype=torch.int32)
    index = torch.tensor([2, -1, 10], dtype=torch.int32)
    value = torch.tensor([5, 6, 7], dtype=torch.int32)
    tokens = torch.full((5,), 7, dtype=torch.int32)
    feed.feed(ids, sampled, index, value, tokens=tokens, picked=picked, tables=tables)
    assert tokens.tolist() == [17, 8, 33, 9, 0]
    assert picked[3] == picked[2] == sample.NONE and sample.picked_token(int(picked[1])) == 33
    assert tables.tolist() == [[0, 0, 5], [0, 0, 0], [0, 0, 0], [0, 7, 0]]


def test_blocks_go_out_come_back_and_are_copied() -> None:
    torch.manual_seed(0)
    store = torch.randn(7, 2, 2, 3, 4, 5)
    ids = torch.tensor([5, 0, 3], dtype=torch.int32)
    out = torch.empty(4, *store.shape[1:])
    block_copy.gather(store, ids, out)
    assert torch.equal(out[:3], store[ids.long()])
    other = store.clone()
    block_copy.scatter(other, ids, out.flip(0)[1:].contiguous())
    wanted = store.clone()
    wanted[ids.long()] = store[[3, 0, 5]]
    assert torch.equal(other, wanted)
    block_copy.copy(store, torch.tensor([[5, 1, 3], [2, 6, 1]], dtype=torch.int32))
    wanted = wanted.copy_(store)
    assert torch.equal(store[1, ..., :3, :], store[5, ..., :3, :])
    assert torch.equal(store[6, ..., :1, :], store[2, ..., :1, :])
    assert not torch.equal(store[1, ..., 3, :], store[5, ..., 3, :])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
# the benchmark's check of kernels, `test_gpu_suite.py`, has few rows in the default run
@pytest.mark.parametrize("rows", slow_unless([1, 16, 21, 64], quick=[21, 64]))
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("processors", [2, 99], ids=["whole", "in-parts"])
def test_products_of_few_rows(
    biased: bool, rows: int, processors: int, dtype: torch.dtype, tolerance: float
) -> None:
    """From tokens to a stream, through a gated product and back onto the stream."""
    torch.manual_seed(0)
    hidden, inner = 70, 600
    near = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    table, gain = torch.randn(9, hidden).to(dtype), torch.randn(hidden).to(dtype)
    up, down = torch.randn(2 * inner, hidden) / hidden**0.5, torch.randn(hidden, inner) / inner**0.5
    up, down = up.to(dtype), down.to(dtype)
    first, second = (torch.randn(n).to(dtype) if biased else None for n in (2 * inner, hidden))
    scratch = skinny_gemm.Scratch(CPU)
    tokens = torch.arange(rows).int() % 9
    stream = skinny_gemm.embed_stream(tokens, table, gain)
    plain, exact = new_stream(table[tokens.long()], gain), ReferenceOps()
    wide = Stream(*(part.double() for part in (plain.x, plain.scaled, plain.squares)))
    near(stream.x, plain.x)
    near(stream.scaled, plain.scaled)
    for gated in (False, True):
        weight, bias = (
            (up, first) if gated else (up[:inner], None if first is None else first[:inner])
        )
        got, again = (
            skinny_gemm.norm_linear(
                stream, weight, bias, eps=1e-5, gated=gated, scratch=scratch, many=processors
            )
            for _ in range(2)
        )
        wanted = exact.norm_linear(_wide(weight, bias), wide, 1e-5, gated=gated)
        near(got, wanted.to(dtype))
        assert torch.equal(got, again) and not scratch.counters.any()
    h = wanted.to(dtype)
    after = skinny_gemm.linear_add(
        h, down, second, onto=stream, gain=gain, scratch=scratch, many=processors
    )
    then = exact.linear_add(_wide(down, second), h.double(), wide, gain.double())
    near(after.x, then.x.to(dtype))
    near(after.scaled, then.scaled.to(dtype))
    near(after.squares.sum(0)[:rows], then.squares.sum(0).float(), rtol=2 * tolerance)


def _wide(weight: Tensor, bias: Tensor | None) -> PlainLinear:
    return PlainLinear(weight.double(), None if bias is None else bias.double())


def test_a_product_of_few_rows_keeps_processors_busy() -> None:
    for width, depth in ((4096, 4096), (6144, 4096), (4096, 14336), (1024, 2048), (1024, 3072)):
        for rows in (1, 32):
            tile, split = skinny_gemm.choose_tile(rows, width, depth, many=132, gated=False)
            assert 64 <= -(-width // tile.out) * split <= 132 and depth // split >= 128
            assert not -(-depth // split) % tile.deep
