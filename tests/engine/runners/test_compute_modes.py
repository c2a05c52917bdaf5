"""Other ways to compute: bfloat16, int8 weights, the deterministic mode, weights in place."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.ops.cpu import CpuOps
from drawloom.engine.sequence import SamplingParams
from drawloom.errors import ConfigError


def _prompts(count: int, longest: int = 80) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(3, 259) for _ in range(rng.randint(2, longest))] for _ in range(count)]


def _scores(core: EngineCore, prompts: list[list[int]]) -> list[tuple[float, ...]]:
    out: dict[str, tuple[float, ...]] = {}
    for index, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=0, score_from=1)
        core.submit(GenerateRequest(str(index), str(index), tuple(prompt), params))
    while core.busy:
        out |= {d.request: d.scores for d in core.step() if d.finish}
    return [out[str(i)] for i in range(len(prompts))]


def _bits(core: EngineCore, prompts: list[list[int]], together: bool) -> list[list[float]]:
    """Log-probabilities of what each prompt goes on with, to the last bit."""
    out: dict[str, list[float]] = {}
    for index, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=True, temperature=0.7)
        core.submit(GenerateRequest(str(index), str(index), tuple(prompt), params))
        while core.busy and (not together or index == len(prompts) - 1):
            for delta in core.step():
                out.setdefault(delta.request, []).extend(delta.logprobs)
    return [out[str(i)] for i in range(len(prompts))]


def _same(found: list[tuple[float, ...]], wanted: list[tuple[float, ...]]) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs)


def _errors(oracle: Any, prompts: list[list[int]], found: list[tuple[float, ...]]) -> list[float]:
    errors = []
    for prompt, values in zip(prompts, found, strict=True):
        table = oracle.logits(prompt).log_softmax(-1)
        wanted = [table[at - 1, prompt[at]].item() for at in range(1, len(prompt))]
        errors += [abs(a - b) for a, b in zip(wanted, values, strict=True)]
    return errors


@pytest.mark.parametrize(
    ("options", "share"), [({"dtype": "bfloat16"}, 0.02), ({"weights": "int8"}, 0.05)]
)
def test_fewer_bits_stay_close_by_log_probability(
    oracle: Any, options: dict[str, str], share: float
) -> None:
    """On average within a share of the logits' spread; 8 bits of noise weigh more on 64 wide."""
    prompts = _prompts(8)
    errors = _errors(oracle, prompts, _scores(oracle.engine(**options), prompts))
    spread = oracle.logits(prompts[0]).std().item()
    assert sum(errors) / len(errors) < share * spread
    assert max(errors) < 10 * share * spread


@pytest.mark.parametrize("chunk", [1, 7, 16, 512])
def test_the_deterministic_mode_gives_the_same_bits(oracle: Any, chunk: int) -> None:
    prompts = _prompts(24, longest=70)
    alone = _bits(oracle.engine(deterministic=True), prompts, together=False)
    options = {"deterministic": True, "max_batch_tokens": chunk, "kv_tokens": 8192}
    assert _bits(oracle.engine(**options), prompts, together=True) == alone


def test_the_deterministic_mode_agrees_with_the_oracle(oracle: Any) -> None:
    prompts = _prompts(4, longest=40)
    errors = _errors(oracle, prompts, _scores(oracle.engine(deterministic=True), prompts))
    assert max(errors) < 1e-4


def test_weights_are_replaced_in_place(llama: Any, tmp_path: Path) -> None:
    core, prompts = llama.engine(), _prompts(3)
    before = _scores(core, prompts)
    other = {n: t.clone() for n, t in llama.model.state_dict().items()}
    for name, tensor in other.items():
        if "norm" not in name:
            tensor += 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ConfigError, match=r"model\.norm\.weight is missing"):
        bad = {n: t for n, t in other.items() if n != "model.norm.weight"}
        core.handle(do.UpdateWeights("bad", tensors=bad))
    assert _scores(core, prompts) == before
    core.handle(do.UpdateWeights("v2", tensors=other))
    after = _scores(core, prompts)
    assert after != before
    core.handle(do.UpdateWeights("v1", folder=str(llama.folder)))
    _same(_scores(core, prompts), before)
    import transformers

    model = transformers.LlamaForCausalLM(llama.model.config)
    model.load_state_dict(other)
    folder = shutil.copytree(llama.folder, tmp_path / "other")
    model.save_pretrained(folder)
    core.handle(do.UpdateWeights("v3", folder=str(folder)))
    _same(_scores(core, prompts), after)


def test_options_that_exclude_each_other_are_refused(llama: Any) -> None:
    with pytest.raises(ConfigError, match="deterministic"):
        llama.engine(weights="int8", deterministic=True)
    with pytest.raises(ConfigError, match="dense or int8"):
        llama.engine(weights="int3")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's books")
def test_kernels_that_onednn_keeps_for_every_shape_do_not_pile_up() -> None:
    ops = CpuOps()

    def every_shape(first: int) -> float:
        for inputs in range(first, first + 20):
            linear = ops.linear(torch.zeros(512, 32 * inputs), None)
            for rows in range(3, 17):
                linear(torch.zeros(rows, 32 * inputs))
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    before = every_shape(1)  # 280 shapes: more than are kept
    after = every_shape(21)
    assert after < before + 60, f"{before:.0f} to {after:.0f} MiB"  # 150 MiB more when each is


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_in_one_call_compute_what_each_operation_does(
    llama: Any, dtype: str, request: pytest.FixtureRequest
) -> None:
    """To the bit, in prompts of many tiles and in decoding, on one thread and on two."""
    request.addfinalizer(lambda: torch.set_num_threads(1))
    prompts = _prompts(6, 200)
    found = []
    for threads in (1, 2):
        for stacked in (True, False):
            core = llama.engine(dtype=dtype, threads=threads)
            assert core._runner.model._stack is not None
            if not stacked:
                core._runner.model._stack = None
            found.append(_bits(core, prompts, together=True))
    assert all(one == found[0] for one in found)
