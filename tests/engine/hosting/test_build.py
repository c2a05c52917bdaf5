"""KV of other models is refused; ids that only the model or only its tokenizer has do no harm."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import Delta, GenerateRequest
from drawloom.engine.config import EngineConfig, ModelConfig, RopeScaling
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.hosting.build import build, fingerprint
from drawloom.engine.models import checkpoint
from drawloom.engine.runners.cpu_runner import ModelRunner
from drawloom.engine.runners.gpu_runner import GpuRunner
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import CheckpointError, EngineError

SPEC = ModelConfig(
    "qwen3",
    vocab_size=300,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_position=256,
    qk_norm=True,
    eos_ids=(2,),
    dtype="float32",
)
CPU = torch.device("cpu")


def _weights(spec: ModelConfig = SPEC, scale: float = 8.0) -> dict[str, torch.Tensor]:
    made = checkpoint.dummy(spec, torch.float32, seed=3)
    return {n: t if "norm" in n else t * scale for n, t in made.items()}


def _engine(
    tokenizer_file: Path,
    weights: dict[str, torch.Tensor] | None = None,
    spec: ModelConfig = SPEC,
    runner: type[ModelRunner] | None = None,
) -> EngineCore:
    config = EngineConfig(kv_tokens=512)
    tokenizer = Tokenizer.load(tokenizer_file.parent)
    return build(spec, weights or _weights(spec), tokenizer, config, CPU, runner=runner)


def _run(core: EngineCore) -> dict[str, list[Delta]]:
    heard: dict[str, list[Delta]] = {}
    while core.busy:
        for delta in core.step():
            heard.setdefault(delta.request, []).append(delta)
    core.cache.check([], [b"", b"v2\0"])
    return heard


# --- KV of other models -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(checkpoint.shapes(SPEC)))
def test_kv_of_any_other_weights_is_refused(tokenizer_file: Path, name: str) -> None:
    mine = _engine(tokenizer_file)
    mine.submit(GenerateRequest("a", "chat", tuple(range(3, 40)), SamplingParams(max_tokens=2)))
    _run(mine)
    data = mine.handle(do.Export("chat"))
    assert _engine(tokenizer_file).handle(do.Import("chat", data)).tokens == 38
    weights = _weights()
    rank = torch.randn(weights[name].shape[0], 1) * 0.01  # as a merged adapter changes it
    weights[name] += rank if weights[name].dim() == 2 else rank[:, 0]
    with pytest.raises(EngineError, match="another model or weights"):
        _engine(tokenizer_file, weights).handle(do.Import("chat", data))


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 2},
        {"rms_eps": 1e-5},
        {"window": 16},
        {"rope_theta": 5e5},
        {"qk_norm": False},
        {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)},
        {"family": "llama"},
        {"intermediate_size": 24},
        {"qkv_bias": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_kv_of_another_configuration_is_of_another_model(change: dict[str, Any]) -> None:
    config = EngineConfig()
    other = replace(SPEC, **change)
    weights = _weights() | _weights(other)
    assert fingerprint(SPEC, weights, config) != fingerprint(other, weights, config)


def test_what_changes_no_number_does_not_make_another_model() -> None:
    weights, config = _weights(), EngineConfig()
    other = replace(SPEC, eos_ids=(1, 2), max_position=64, dtype="bfloat16")
    assert fingerprint(SPEC, weights, config) == fingerprint(other, weights, config)


def test_int8_weights_are_other_weights() -> None:
    weights = _weights()
    marks = [fingerprint(SPEC, weights, EngineConfig(weights=w)) for w in ("dense", "int8")]
    assert marks[0] != marks[1]


def test_updated_weights_are_other_weights(tokenizer_file: Path) -> None:
    """Two engines that call different weights by one name."""
    engines = [_engine(tokenizer_file) for _ in range(2)]
    for scale, engine in zip((7.0, 9.0), engines, strict=True):
        engine.handle(do.UpdateWeights("v2", tensors=_weights(scale=scale)))
    params = SamplingParams(max_tokens=2)
    engines[0].submit(GenerateRequest("a", "chat", tuple(range(3, 40)), params))
    _run(engines[0])
    with pytest.raises(EngineError, match="another model or weights"):
        engines[1].handle(do.Import("chat", engines[0].handle(do.Export("chat"))))


# --- ids --------------------------------------------------------------------------------------


RUNNERS = pytest.mark.parametrize("runner", [None, GpuRunner], ids=["cpu", "ahead"])


def _preferring(token: int) -> dict[str, torch.Tensor]:
    """Weights by which one id is by far the likeliest everywhere."""
    weights = _weights()
    weights["lm_head.weight"] = weights["lm_head.weight"] * 0.01
    weights["model.norm.weight"] = torch.ones(SPEC.hidden_size)
    direction = torch.ones(SPEC.hidden_size)
    weights["model.embed_tokens.weight"] += 3 * direction
    weights["lm_head.weight"][token] = direction
    return weights


@RUNNERS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 3},
        {"presence_penalty": 1.0},
        {"logit_bias": ((299, 50.0),)},
        {"logprobs": True, "top_logprobs": 3},
    ],
    ids=["greedy", "noise", "top-k", "penalty", "bias", "logprobs"],
)
def test_an_id_without_a_token_is_never_sampled(
    tokenizer_file: Path, runner: Any, options: dict[str, Any]
) -> None:
    core = _engine(tokenizer_file, _preferring(290), runner=runner)
    assert core.tokenizer.size < 290 < core.info.vocabulary == 300
    params = SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **options})
    core.submit(GenerateRequest("a", "chat", (5, 6, 7), params))
    deltas = _run(core)["a"]
    tokens = [t for delta in deltas for t in delta.tokens]
    assert len(tokens) == 8 and max(tokens) < core.tokenizer.size
    for delta in deltas:
        assert all(id < core.tokenizer.size for top in delta.tops for id, _ in top)
        assert all(value < -5 for value in delta.logprobs), "of all that the model may say"


def test_ids_in_gaps_of_the_tokenizer_are_never_sampled(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = Tokenizer.load(tokenizer_file.parent).ids() - {100, 200}
    monkeypatch.setattr(Tokenizer, "ids", lambda self: ids)
    core = _engine(tokenizer_file, _preferring(200))
    assert core._runner.unknown[:2] == (100, 200)  # type: ignore[attr-defined]
    core.submit(GenerateRequest("a", "chat", (5, 6, 7), SamplingParams(max_tokens=8)))
    assert not {100, 200} & {t for delta in _run(core)["a"] for t in delta.tokens}


@RUNNERS
def test_a_prompt_may_have_every_id_of_the_model(tokenizer_file: Path, runner: Any) -> None:
    core = _engine(tokenizer_file, runner=runner)
    params = SamplingParams(max_tokens=3, repetition_penalty=1.2, ignore_eos=True)
    core.submit(GenerateRequest("a", "chat", (5, 299, 7), params))
    assert sum(len(d.tokens) for d in _run(core)["a"]) == 3
    with pytest.raises(EngineError, match="vocabulary of 300"):
        core.submit(GenerateRequest("b", "chat", (5, 300), params))


def test_a_model_that_lacks_ids_of_its_tokenizer_is_refused(tokenizer_file: Path) -> None:
    spec = replace(SPEC, vocab_size=200)
    with pytest.raises(CheckpointError, match=r"ids up to 258, the model only 200"):
        _engine(tokenizer_file, _weights(spec), spec)


# --- logits that are no numbers -----------------------------------------------------------------


@RUNNERS
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_p": 0.9}, {"logprobs": True}])
def test_logits_that_are_no_numbers_fail_the_request(
    tokenizer_file: Path, runner: Any, value: float, options: dict[str, Any]
) -> None:
    weights = _weights()
    weights["lm_head.weight"][40] = value
    core = _engine(tokenizer_file, weights, runner=runner)
    for name in ("a", "b"):
        params = SamplingParams(**{"max_tokens": 4, **options})
        core.submit(GenerateRequest(name, name, (5, 6, len(name)), params))
    for deltas in _run(core).values():
        assert deltas[-1].finish is FinishReason.ERROR
        assert isinstance(deltas[-1].error, EngineError) and "NaN" in str(deltas[-1].error)
        assert not any(delta.tokens for delta in deltas)


def test_packed_weights_are_not_held_a_second_time(tokenizer_file: Path) -> None:
    weights = _weights()
    _engine(tokenizer_file, weights)
    assert not weights
