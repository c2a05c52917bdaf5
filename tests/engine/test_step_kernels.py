"""The kernels around attention, in the interpreter: sampling, what a step reads, blocks, products
of few rows."""

import pytest
import torch
from torch import Tensor

from drawloom.engine.kernels import blocks, feed, reference, sample, skinny
from drawloom.engine.sampling import gumbel, keep

CPU = torch.device("cpu")


def _pick(
    logits: Tensor, temperatures: list[float], keys: list[int], k: list[int], p: list[float]
) -> list[int]:
    rows = logits.shape[0]
    picked = sample.nothing(rows + 1, CPU)
    sample.sample(
        logits, picked, torch.arange(1, rows + 1, dtype=torch.int32), torch.tensor(temperatures),
        torch.tensor(keys), torch.tensor(k, dtype=torch.int32), torch.tensor(p),
        filtered=any(k) or min(p) < 1,
    )  # fmt: skip
    assert picked[0] == sample.NONE
    tokens: list[int] = sample.tokens(picked[1:]).tolist()
    assert tokens == [sample.unpack(value) for value in picked[1:].tolist()]
    return tokens


def _reference(
    logits: Tensor, temperatures: list[float], keys: list[int], k: list[int], p: list[float]
) -> list[int]:
    out = logits.float().argmax(-1)
    for row, temperature in enumerate(temperatures):
        if temperature:
            values = keep(logits[row : row + 1].float() / temperature, [k[row]], [p[row]])
            out[row] = (values + gumbel([keys[row]], values.shape[1], CPU)).argmax()
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
def testkeeped_sampling_is_that_of_the_other_devices(dtype: torch.dtype, k: int, p: float) -> None:
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
    picked = sample.nothing(2, CPU)
    zeros = torch.zeros(1, dtype=torch.int32)
    sample.sample(torch.zeros(1, 9), picked, zeros - 1, torch.zeros(1), zeros.long(), zeros,
                  torch.ones(1), filtered=False)  # fmt: skip
    assert picked.tolist() == [sample.NONE, sample.NONE]


def test_a_step_reads_what_the_one_before_it_said() -> None:
    picked = sample.nothing(4, CPU)
    logits = torch.zeros(2, 40)
    logits[0, 17], logits[1, 33] = 1.0, 1.0
    sample.sample(logits, picked, torch.tensor([3, 1], dtype=torch.int32), torch.zeros(2),
                  torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32),
                  torch.ones(2), filtered=False)  # fmt: skip
    ids = torch.tensor([-1 - 3, 8, -1 - 1, 9, -1 - 0], dtype=torch.int32)  # seat 0 said nothing
    sampled = torch.tensor([3, -1, -1, 2, -1], dtype=torch.int32)
    tables = torch.zeros(4, 3, dtype=torch.int32)
    index = torch.tensor([2, -1, 10], dtype=torch.int32)
    value = torch.tensor([5, 6, 7], dtype=torch.int32)
    tokens = torch.full((5,), 7, dtype=torch.int32)
    feed.feed(ids, sampled, index, value, tokens, picked, tables)
    assert tokens.tolist() == [17, 8, 33, 9, 0]
    assert picked[3] == picked[2] == sample.NONE and sample.unpack(int(picked[1])) == 33
    assert tables.tolist() == [[0, 0, 5], [0, 0, 0], [0, 0, 0], [0, 7, 0]]


def test_blocks_go_out_come_back_and_are_copied() -> None:
    torch.manual_seed(0)
    store = torch.randn(7, 2, 2, 3, 4, 5)
    ids = torch.tensor([5, 0, 3], dtype=torch.int32)
    out = torch.empty(4, *store.shape[1:])
    blocks.gather(store, ids, out)
    assert torch.equal(out[:3], store[ids.long()])
    other = store.clone()
    blocks.scatter(other, ids, out.flip(0)[1:].contiguous())
    wanted = store.clone()
    wanted[ids.long()] = store[[3, 0, 5]]
    assert torch.equal(other, wanted)
    blocks.copy(store, torch.tensor([[5, 1, 3], [2, 6, 1]], dtype=torch.int32))
    wanted = wanted.copy_(store)
    assert torch.equal(store[1, ..., :3, :], store[5, ..., :3, :])
    assert torch.equal(store[6, ..., :1, :], store[2, ..., :1, :])
    assert not torch.equal(store[1, ..., 3, :], store[5, ..., 3, :])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize(
    "form",
    [(), ("bias",), ("gain", "residual"), ("gain", "gated"), ("gain", "gated", "bias", "residual")],
    ids=lambda form: "-".join(form) or "plain",
)
@pytest.mark.parametrize("processors", [2, 99], ids=["whole", "in-parts"])
def test_skinny_products(
    form: tuple[str, ...], rows: int, processors: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    width, depth = 70, 600
    x = torch.randn(rows, depth).to(dtype)
    weight = (torch.randn(width, depth) / depth**0.5).to(dtype)
    outputs = width // 2 if "gated" in form else width
    options = {
        "bias": torch.randn(width).to(dtype) if "bias" in form else None,
        "gain": torch.randn(depth).to(dtype) if "gain" in form else None,
        "residual": torch.randn(rows, outputs).to(dtype) if "residual" in form else None,
    }
    scratch = skinny.Scratch(CPU)
    got, again = (
        skinny.skinny(x, weight, **options, eps=1e-5, gated="gated" in form, scratch=scratch,
                      many=processors)
        for _ in range(2)
    )  # fmt: skip
    wanted = reference.skinny(x, weight, **options, eps=1e-5, gated="gated" in form)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    assert torch.equal(got, again) and not scratch.counters.any()


def test_skinny_products_give_every_processor_work() -> None:
    for width, depth in ((4096, 4096), (6144, 4096), (4096, 14336), (1024, 1024), (1024, 3072)):
        out, _, split = skinny.shape(width, depth, 132, gated=False)
        assert -(-width // out) * split >= 128 and depth // split >= 128
