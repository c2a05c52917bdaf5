"""Tilings of a kernel compute the same, and the fastest is used."""

from collections.abc import Iterator

import pytest
import torch

from drawloom.engine.kernels import decode, prefill
from drawloom.engine.kernels.gpu_arch import pretend
from drawloom.engine.kernels.tuning import DECODE, PREFILL, Tiling, Tilings
from drawloom.engine.kernels.tuning_batch import TuningBatch
from drawloom.engine.kernels.types import DecodeBatch, KeyParts, PrefillBatch
from drawloom.engine.ops import reference

KEY = (4, 2, 16)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_stays_chosen() -> Iterator[None]:
    yield
    for tilings in (DECODE, PREFILL):
        tilings._chosen.clear()


def _ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _cache() -> tuple[torch.Tensor, torch.Tensor]:
    memory = torch.randn(16, 1, 2, 2, 16, 16)
    layer = memory.transpose(3, 4)[:, 0]
    return layer[:, 0], layer[:, 1]


@pytest.mark.parametrize("tiling", DECODE.options, ids=str)
def test_decode_by_any_tiling(tiling: Tiling) -> None:
    torch.manual_seed(0)
    DECODE.use((*KEY, False), tiling)
    keys, values = _cache()
    tables = torch.stack([torch.arange(12), torch.arange(12).flip(0)]).int()
    at = DecodeBatch(tables, _ints([0, 1]), _ints([190, 33]))
    parts = KeyParts.allocate(2, 4, 16, 3, CPU)
    decode.split_keys(at, parts)
    q = torch.randn(2, 4, 16)
    out = torch.full_like(q, torch.nan)
    for _ in range(2):  # counters are as they were
        decode.decode(q, keys, values, at, parts, out)
        wanted = reference.decode(q, keys, values, at)
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    assert not parts.arrived.any()


@pytest.mark.parametrize("chip", [80, 90])
def test_prefill_by_any_tiling(chip: int) -> None:
    torch.manual_seed(0)
    keys, values = _cache()
    tables = torch.arange(16).int()[None]
    q = torch.randn(150, 4, 16)
    with pretend(chip):
        for tiling in PREFILL.options:
            PREFILL.use(KEY, tiling)
            size = prefill.tile_queries(*KEY, 150)
            assert size * 2 == tiling.rows
            tiles = torch.tensor(prefill.tiles([150], size), dtype=torch.int32).T.contiguous()
            at = PrefillBatch(tables, _ints([0]), _ints([200]), _ints([0, 150]), tiles)
            out = torch.full_like(q, torch.nan)
            prefill.prefill(q, keys, values, at, size, out)
            wanted = reference.prefill(q, keys, values, at)
            torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


def test_the_fastest_that_runs_is_used() -> None:
    quick, slow, broken = Tiling(16, 64, 4, 3), Tiling(16, 32, 4, 3), Tiling(16, 128, 4, 9)
    tilings = Tilings(slow, broken, quick, Tiling(16, 16, 1, 1, least=1000))
    times = {slow: 2.0, quick: 1.0}
    tilings.tune(KEY, lambda: None, lambda work: times[tilings.of(KEY)])
    assert tilings.of(KEY) == quick
    assert tilings.of((8, 8, 64)) == slow
    tilings.tune(KEY, lambda: None, lambda work: times[broken])
    assert tilings.of(KEY) == slow


def test_a_trial_runs_and_leaves_zeros() -> None:
    keys, values = torch.zeros(2, 16, 1, 2, 16, 16).transpose(3, 4)[:, :, 0].unbind(0)
    tuning = TuningBatch(KEY, torch.arange(16).int(), keys, values, 8, 100)
    assert keys[:6].all() and not keys[6:].any()
    tuning.decode()
    tuning.prefill()
    assert tuning._parts.records[:, 0].max() >= 0
    tuning.clear()
    assert not keys.any() and not values.any()
