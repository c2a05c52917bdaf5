"""Sampling: greedy, filters, and noise that belongs to the request alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drawloom.engine.core.step_plan import Chunk
from drawloom.engine.runners.cpu_sampling import gumbel, keep
from drawloom.engine.runners.sampler import noise_key, sample, score
from drawloom.engine.sequence import SamplingParams, Sequence
from drawloom.errors import ConfigError, EngineError


def _chunk(name: str, params: SamplingParams, position: int = 8, conversation: str = "x") -> Chunk:
    seq = Sequence(name, conversation, [1] * position, params)
    return Chunk(seq, [1], position - 1, [0], True)


def test_greedy_takes_the_best() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert sample(logits, [_chunk("a", SamplingParams())])["a"].token == 1


def test_noise_does_not_depend_on_the_batch() -> None:
    logits = torch.randn(5, 50)
    params = SamplingParams(temperature=1.0, seed=3)
    chunks = [_chunk(str(i), params, position=10 + i) for i in range(5)]
    together = sample(logits, chunks)
    for index, chunk in enumerate(chunks):
        assert sample(logits[index : index + 1], [chunk])[chunk.seq.id] == together[chunk.seq.id]


def test_conversations_and_seeds_differ() -> None:
    logits = torch.zeros(1, 1000)
    base = _chunk("a", SamplingParams(temperature=1.0, seed=1))
    other = _chunk("a", SamplingParams(temperature=1.0, seed=2))
    fork = _chunk("a", SamplingParams(temperature=1.0, seed=1), conversation="y")
    tokens = {sample(logits, [c])["a"].token for c in (base, other, fork)}
    assert len(tokens) == 3


def test_a_named_stream_of_noise_is_the_same_for_every_conversation() -> None:
    logits = torch.zeros(1, 1000)
    params = SamplingParams(temperature=1.0, seed=1)
    tokens = []
    for conversation, noise in (("x", "0"), ("y", "0"), ("x", "1"), ("x", "")):
        seq = Sequence("a", conversation, [1] * 8, params, noise=noise)
        tokens.append(sample(logits, [Chunk(seq, [1], 7, [0], True)])["a"].token)
    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 3


def test_scores_that_are_no_numbers_are_an_error() -> None:
    class Broken:
        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.full((len(hidden), 9), float("nan"))

    with pytest.raises(EngineError, match="score is no number"):
        score(Broken(), torch.zeros(3, 4), [1, 2, 3])


def test_frequencies_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().expand(4000, 4)
    params = SamplingParams(temperature=1.0)
    chunks = [_chunk(str(i), params, position=i + 1) for i in range(4000)]
    tokens = torch.tensor([s.token for s in sample(logits, chunks).values()])
    shares = torch.bincount(tokens, minlength=4) / 4000
    assert (shares - probabilities).abs().max() < 0.03


_FILTERS: list[dict[str, Any]] = [{"top_p": 0.8}, {"top_k": 6}, {"top_k": 7, "top_p": 0.6}, {}]


@pytest.mark.parametrize("options", _FILTERS, ids=str)
def test_frequencies_follow_what_filters_keep(options: dict[str, Any]) -> None:
    torch.manual_seed(4)
    row, count = 1.5 * torch.randn(1, 40), 6000
    params = SamplingParams(temperature=0.7, **options)
    chunks = [_chunk(str(i), params, position=i + 1) for i in range(count)]
    tokens = torch.tensor([s.token for s in sample(row.expand(count, 40), chunks).values()])
    kept = keep(row / 0.7, [params.top_k], [params.top_p])
    wanted = kept.softmax(-1)[0]
    shares = torch.bincount(tokens, minlength=40) / count
    assert not shares[wanted == 0].any()
    # 5 deviations of a share of 6,000 draws
    assert ((shares - wanted).abs() <= 5 * (wanted * (1 - wanted) / count).sqrt() + 1e-4).all()


def _by_definition(row: torch.Tensor, chunk: Chunk) -> int:
    """Sort everything, and add noise to all that is kept."""
    params = chunk.seq.params
    if not params.temperature:
        return int(row.argmax())
    kept = keep(row[None] / max(params.temperature, 1e-6), [params.top_k], [params.top_p])
    key = noise_key(params.seed, chunk.seq.noise, chunk.end)
    return int((kept + gumbel([key], torch.arange(len(row)))).argmax())


_OPTIONS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 1e-9, 0.01, 0.3, 0.7, 1, 2, 100]),
    top_k=st.sampled_from([0, 0, 1, 2, 3, 20, 59, 60, 61, 299, 1 << 31 - 1]),
    top_p=st.sampled_from([1, 1, 1e-9, 0.013, 0.3, 0.77, 0.83, 0.951, 0.9999999]),
    seed=st.integers(0, 1 << 70),
)


@given(
    st.lists(_OPTIONS, min_size=1, max_size=6),
    st.sampled_from([1, 2, 60, 300, 5000]),
    st.sampled_from([0.0, 0.1, 1.0, 3.0, 30.0, 1e6]),
    st.sampled_from(["float32", "bfloat16", "whole"]),
    st.integers(0, 1 << 30),
)
def test_a_token_is_the_one_that_sorting_everything_gives(
    options: list[SamplingParams], width: int, scale: float, kind: str, seed: int
) -> None:
    """Ties are met in bfloat16 and in whole numbers; rows of a batch have options of their own."""
    logits = scale * torch.randn(len(options), width, generator=torch.Generator().manual_seed(seed))
    if kind != "float32":
        logits = logits.round() if kind == "whole" else logits.bfloat16()
    chunks = [_chunk(str(i), params, position=i + 1) for i, params in enumerate(options)]
    found = sample(logits, chunks)
    wanted = [_by_definition(r, c) for r, c in zip(logits.float(), chunks, strict=True)]
    assert [found[c.seq.id].token for c in chunks] == wanted


def test_a_row_without_numbers_spoils_no_other() -> None:
    logits = torch.zeros(4, 30)
    logits[1, 7], logits[2, 5] = math.nan, math.inf
    chunks = [_chunk(str(i), SamplingParams(temperature=0.7, top_k=i % 2)) for i in range(4)]
    found = sample(logits, chunks)
    assert [found[str(i)].error is None for i in range(4)] == [True, False, False, True]


def test_top_k_and_top_p_never_leave_their_set() -> None:
    logits = torch.tensor([[2.0, 1.9, 1.8, -1.0, -1.1]]).expand(300, 5)
    for params in (
        SamplingParams(temperature=2.0, top_k=3),
        SamplingParams(temperature=1.0, top_p=0.8),
    ):
        chunks = [_chunk(str(i), params, position=i + 1) for i in range(300)]
        assert {s.token for s in sample(logits, chunks).values()} == {0, 1, 2}


def test_gumbel_noise_has_the_right_mean() -> None:
    noise = gumbel([1, 2, 3], torch.arange(20_000))
    assert abs(noise.mean().item() - 0.5772) < 0.02
    assert torch.isfinite(noise).all()


def _after(prompt: list[int], said: list[int], **options: Any) -> Chunk:
    seq = Sequence("a", "x", prompt + said, SamplingParams(**options), resumed_tokens=len(said))
    return Chunk(seq, [said[-1] if said else prompt[-1]], len(seq.tokens) - 1, [0], True)


def test_bias_makes_a_token_certain_or_impossible() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 0.5]])
    assert _one(logits, _after([0], [], logit_bias=((3, 100.0),))) == 3
    assert _one(logits, _after([0], [], logit_bias=((1, -100.0),))) == 2


def test_penalties_count_what_was_said_and_not_the_prompt() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.5, 0.5]])
    assert _one(logits, _after([1, 1, 1], [0], presence_penalty=2.0)) == 1
    assert _one(logits, _after([0], [1], presence_penalty=1.0)) == 2
    assert _one(logits, _after([0], [1, 2, 2], presence_penalty=0.1, frequency_penalty=0.3)) == 1
    assert _one(logits, _after([1], [0], repetition_penalty=1.5)) == 2


def test_penalties_leave_the_log_probabilities_alone() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.5, 0.5]])
    chunk = _after([0], [1], presence_penalty=1.0, logprobs=True, top_logprobs=2)
    found = sample(logits, [chunk])["a"]
    assert found.token == 2
    assert found.logprob == pytest.approx(logits.log_softmax(-1)[0, 2].item())
    assert [token for token, _ in found.top] == [1, 2]


def _one(logits: torch.Tensor, chunk: Chunk) -> int:
    return sample(logits, [chunk])["a"].token


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": -1},
        {"top_logprobs": 21},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 1000.0},
        {"stop": ("",)},
        {"top_p": 0.0},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SamplingParams(**options)


_WRONG = [math.nan, math.inf, -math.inf, "1", None, 1j, 10**400, -(10**400)]


@pytest.mark.parametrize("value", _WRONG, ids=lambda value: str(value)[:6])
@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "top_logprobs",
        "score_from",
    ],
)
def test_an_option_that_is_no_number_in_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 2.5},
        {"top_k": 1 << 63},
        {"top_k": 2.5},
        {"seed": 1.5},
        {"seed": None},
        {"stop": "END"},
        {"stop": (1,)},
        {"top_p": 0},
        {"repetition_penalty": 0},
        {"logit_bias": {5: 1.0}},
        {"logit_bias": ((5, math.nan),)},
        {"logit_bias": ((5, math.inf),)},
        {"logit_bias": (5,)},
        {"logit_bias": (("5", 1.0),)},
    ],
    ids=str,
)
def test_an_option_of_another_shape_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        SamplingParams(**options)


def test_numbers_of_any_integer_and_float_type_are_taken() -> None:
    options: dict[str, Any] = {
        "top_k": np.int64(3),
        "temperature": np.float32(0.5),
        "seed": 1 << 99,
    }
    assert SamplingParams(**options).top_k == 3
