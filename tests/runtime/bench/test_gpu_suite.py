"""The benchmark of a GPU, its every part on small models without one: that it is ready to run."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drawloom.errors import ConfigError
from drawloom.runtime.bench.gpu import kernel_accuracy
from drawloom.runtime.bench.gpu.kernel_speed import Sizes
from drawloom.runtime.bench.gpu.runtime_loop import Load
from drawloom.runtime.bench.gpu.suite import PARTS, Bench, Model, Plan, main
from drawloom.runtime.bench.models import TINY
from drawloom.runtime.bench.session_return import Crowd
from drawloom.runtime.bench.table import Row
from drawloom.runtime.bench.transformers_baseline import GpuTransformers

CPU = torch.device("cpu")


def test_every_kernel_is_checked_against_float64() -> None:
    found = list(kernel_accuracy.check(CPU, kernel_accuracy.SMALL, 1))
    assert [v for v in found if not v.ok] == []
    assert len({v.kernel for v in found}) >= 22 and len(found) == 2 * len({v.kernel for v in found})


def test_a_wrong_kernel_is_found_out() -> None:
    right = torch.tensor([1.0, 0.0])
    assert kernel_accuracy._error(torch.tensor([1.1, 0.0]), right) > 0.05
    assert kernel_accuracy._error(torch.tensor([torch.nan, 0.0]), right) == float("inf")


@pytest.mark.slow
def test_every_part_of_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small model and the CPU: figures mean nothing here, that there are all of them does."""
    sizes = Sizes(
        4, 2, 16, hidden=64, inner=96, context=40, batches=(1, 2), chunk=40, shared=64, alike=2
    )
    plan = Plan(
        models=(
            Model("tiny", TINY, {1: 0.0, 3: 0.0}, 1.0),
            Model("other", replace(TINY, tied=True, qk_norm=True, family="qwen3"), {2: 0.0}, 1.0),
        ),
        context=40,
        prefill=64,
        steps=4,
        scale=kernel_accuracy.SMALL,
        sizes=sizes,
        resumed=100,
        host_tokens=2048,
        kv_tokens=2048,
        crowd=Crowd(3, 2, 20, 4, 0.01),
        loads=(Load(2, 2, 0.005, 0.01),),
        shared=(4, 256),
        rival=(2, 20, 4),
    )
    monkeypatch.setattr(
        GpuTransformers, "compiled", lambda *args: 100.0
    )  # Inductor takes 20 s on a CPU
    bench = Bench(CPU, plan)
    rows = list(bench.rows(PARTS))
    names = [row.what for row in rows]
    for wanted in (
        "decode, bfloat16",
        "engine: log-probability, float32",
        "tiny: decode 3 x 40",
        "other: prefill 64",
        "tiny: restore",
        "  first token at 100",
        "tiny: 4 steps over 256 shared",
        "tiny: 3 agents x 2 turns: recomputed",
        "tiny: 2 programs with tools",
        "  GPU idle between steps",
        "kernel: cascade, 2 x 64 shared",
        "kernel: prefill, 40 behind 40",
    ):
        assert wanted in names
    assert all(row.ours >= 0 and row.ratio == row.ratio for row in rows)
    assert bench.limits is not None and min(bench.limits.by_unit().values()) > 0


def test_parts_are_chosen_by_name() -> None:
    with pytest.raises(ConfigError, match="correctness"):
        main(CPU, ("spped",), json=True)


def test_figures_so_far_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Bench, parts: tuple[str, ...]) -> Iterator[Row]:
        yield Row("decode", "tokens/s", 2.0, 1.0, "roofline", 3.0)
        raise RuntimeError("the machine went")

    monkeypatch.setattr(Bench, "rows", broken)
    with pytest.raises(RuntimeError, match="went"):
        main(CPU, (), True, tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["device"] == "cpu" and found["rows"][0]["what"] == "decode"
    assert found["rows"][0]["ratio"] == 2.0 and not found["rows"][0]["met"]
