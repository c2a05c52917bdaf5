"""Greedy output equals transformers token for token, whatever happens in between.

Where the oracle's two best logits differ by less than 1e-4 either may follow, and the comparison
goes on with what was said (teacher-forced).
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.sequence import SamplingParams
from drawloom.leases import LeaseStatus
from tests.lanes import slow_unless

Run = Callable[[Any], dict[str, list[int]]]
COUNT = 40


def _prompts(seed: int, count: int, shortest: int = 1, longest: int = 90) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        [rng.randrange(3, 259) for _ in range(rng.randint(shortest, longest))] for _ in range(count)
    ]


def _ask(
    name: str, prompt: list[int], conversation: str | None = None, **options: Any
) -> GenerateRequest:
    params = SamplingParams(**{"max_tokens": COUNT, "ignore_eos": True, **options})
    return GenerateRequest(name, conversation or name, tuple(prompt), params)


def _check(oracle: Any, prompts: list[list[int]], out: dict[str, list[int]]) -> None:
    assert len(out) == len(prompts)
    for index, prompt in enumerate(prompts):
        assert len(out[str(index)]) == COUNT
        oracle.follows(prompt, out[str(index)])


@pytest.mark.parametrize("chunk", slow_unless([1, 15, 16, 17, 64, 512], [15, 512]))
def test_any_chunk_size_gives_the_tokens_of_transformers(
    oracle: Any, run_core: Run, chunk: int
) -> None:
    core = oracle.engine(max_batch_tokens=chunk)
    prompts = _prompts(1, 4)
    for index, prompt in enumerate(prompts):
        core.submit(_ask(str(index), prompt))
    _check(oracle, prompts, run_core(core))


def test_two_hundred_tokens_alone(oracle: Any, run_core: Run) -> None:
    prompt = _prompts(21, 1, 40, 40)[0]
    core = oracle.engine()
    core.submit(_ask("0", prompt, max_tokens=200))
    said = run_core(core)["0"]
    assert len(said) == 200
    oracle.follows(prompt, said)


def test_logits_are_those_of_transformers(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    core = oracle.engine()
    seen: list[torch.Tensor] = []
    model = core._runner.model
    logits = model.logits

    def remember(hidden: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = logits(hidden)
        seen.append(made[:1])  # rows behind it are padding
        return made

    monkeypatch.setattr(model, "logits", remember)
    prompt = _prompts(22, 1, 60, 60)[0]
    core.submit(_ask("0", prompt, max_tokens=8))
    said: list[int] = []
    while core.busy:
        said += [t for d in core.step() for t in d.tokens]
    wanted = oracle.logits(prompt + said)[len(prompt) - 1 : -1]
    assert (torch.cat(seen) - wanted).abs().max() < 1e-4


def test_a_batch_of_sixty_four_in_any_order_gives_the_same_tokens(
    oracle: Any, run_core: Run
) -> None:
    prompts = _prompts(2, 64, longest=40)
    order = list(range(64))
    random.Random(3).shuffle(order)
    core = oracle.engine(kv_tokens=8192)
    for index in order:
        core.submit(_ask(str(index), prompts[index]))
    _check(oracle, prompts, run_core(core))


def test_prefix_hits_change_nothing_and_save_the_prefill(oracle: Any, run_core: Run) -> None:
    core = oracle.engine()
    shared = _prompts(4, 1, 50, 50)[0]
    prompts = [shared + tail for tail in _prompts(5, 4, 1, 20)]
    for index, prompt in enumerate(prompts):
        core.submit(_ask(str(index), prompt))
        oracle.follows(prompt, run_core(core)[str(index)])
    assert core.stats().cache.hit_tokens >= 3 * (len(shared) - 2)


def test_who_begins_alike_at_the_same_time_computes_it_once(oracle: Any, run_core: Run) -> None:
    core = oracle.engine(max_batch_tokens=64)
    shared = _prompts(23, 1, 160, 160)[0]
    prompts = [shared + tail for tail in _prompts(24, 8, 1, 9)]
    for index, prompt in enumerate(prompts):
        core.submit(_ask(str(index), prompt))
    _check(oracle, prompts, run_core(core))
    assert core.stats().cache.hit_tokens >= 7 * len(shared)


def test_a_returning_conversation_recomputes_nothing(oracle: Any, run_core: Run) -> None:
    core = oracle.engine()
    tokens = _prompts(6, 1, 21, 21)[0]
    for turn, more in enumerate(_prompts(7, 4, 3, 9)):
        core.submit(_ask(str(turn), tokens, "chat"))
        said = run_core(core)[str(turn)]
        oracle.follows(tokens, said)
        tokens = tokens + said + more
    assert core.stats().cache.recomputed_tokens == 0


def test_forks_copy_the_partial_block_and_do_not_disturb_each_other(
    oracle: Any, run_core: Run
) -> None:
    core = oracle.engine()
    trunk = _prompts(8, 1, 37, 37)[0]
    core.submit(_ask("trunk", trunk))
    trunk = trunk + run_core(core)["trunk"]
    branches = [trunk + tail for tail in _prompts(9, 4, 2, 12)]
    for index, prompt in enumerate(branches):
        core.handle(do.Fork("trunk", f"branch-{index}"))
        core.submit(_ask(str(index), prompt, f"branch-{index}"))
    _check(oracle, branches, run_core(core))
    assert core.stats().cache.recomputed_tokens == 0


@pytest.mark.parametrize("host_tokens", [0, 4096])
def test_preemption_and_eviction_change_nothing(
    oracle: Any, run_core: Run, host_tokens: int
) -> None:
    core = oracle.engine(kv_tokens=208, max_batch_tokens=33, host_tokens=host_tokens)
    core.copy_seconds = 0.0  # copying is cheaper, whatever this machine is doing
    prompts = _prompts(10, 10, 5, 60)
    for index, prompt in enumerate(prompts):
        core.submit(_ask(str(index), prompt))
    _check(oracle, prompts, run_core(core))
    stats = core.stats()
    assert stats.batch.preemptions > 0
    if host_tokens:
        assert stats.cache.hit_host_tokens + stats.cache.loaded_blocks > 0


def test_what_was_demoted_comes_back_as_it_was(oracle: Any, run_core: Run) -> None:
    core = oracle.engine(kv_tokens=512, host_tokens=4096)
    tokens = _prompts(11, 1, 90, 90)[0]
    core.submit(_ask("0", tokens, "chat"))
    tokens = tokens + run_core(core)["0"] + [7, 8, 9]
    assert core.handle(do.Demote("chat")).status is LeaseStatus.ACCEPTED
    run_core(core)
    for index, prompt in enumerate(_prompts(12, 12, 60, 80)):  # others need all of the device
        core.submit(_ask(f"other-{index}", prompt))
    run_core(core)
    core.submit(_ask("1", tokens, "chat"))
    oracle.follows(tokens, run_core(core)["1"])
    stats = core.stats()
    assert stats.cache.hit_host_tokens >= (24 if oracle.family == "mistral" else len(tokens) - 20)
    assert stats.cache.recomputed_tokens == 0


def test_a_prefetched_conversation_does_not_wait_for_its_copies(oracle: Any, run_core: Run) -> None:
    core = oracle.engine(kv_tokens=1024, host_tokens=4096)
    tokens = _prompts(13, 1, 90, 90)[0]
    core.submit(_ask("0", tokens, "chat"))
    tokens = tokens + run_core(core)["0"] + [7, 8, 9]
    core.handle(do.Sleep())  # all of it goes to host memory
    core.handle(do.WakeUp())
    assert core.handle(do.Prefetch("chat")).status is LeaseStatus.ACCEPTED
    run_core(core)
    core.submit(_ask("1", tokens, "chat"))
    oracle.follows(tokens, run_core(core)["1"])
    assert core.stats().cache.hit_host_tokens == 0
    assert core.stats().cache.loaded_blocks > 0


def test_append_mode_computes_what_is_known_and_rolls_back_to_the_common_prefix(
    oracle: Any, run_core: Run
) -> None:
    core = oracle.engine()
    prompt = _prompts(14, 1, 60, 60)[0]
    for at in (20, 40, 55):
        core.submit(_ask(f"extend-{at}", [*prompt[:at], 5, 6, 7], "chat", max_tokens=0))
        assert run_core(core)[f"extend-{at}"] == []
    core.submit(_ask("0", prompt, "chat"))
    oracle.follows(prompt, run_core(core)["0"])
    assert core.stats().cache.hit_tokens >= 19 + 39 + 55


def test_log_probabilities_of_given_tokens_are_those_of_the_model(
    oracle: Any, run_core: Run
) -> None:
    core = oracle.engine(max_batch_tokens=23)
    prefix = _prompts(15, 1, 50, 50)[0]
    tails = _prompts(16, 3, 1, 40)
    scores: dict[str, tuple[float, ...]] = {}
    for index, tail in enumerate(tails):
        core.submit(_ask(str(index), prefix + tail, max_tokens=index % 2, score_from=len(prefix)))
    while core.busy:
        scores |= {d.request: d.scores for d in core.step() if d.finish}
    for index, tail in enumerate(tails):
        wanted = oracle.logits(prefix + tail).log_softmax(-1)
        found = scores[str(index)]
        assert len(found) == len(tail)
        for at, token in enumerate(tail):
            assert abs(wanted[len(prefix) + at - 1, token].item() - found[at]) < 1e-4


def test_scores_survive_preemption(oracle: Any) -> None:
    core = oracle.engine(kv_tokens=160, max_batch_tokens=16)
    prompts = _prompts(17, 6, 60, 60)
    scores: dict[str, tuple[float, ...]] = {}
    for index, prompt in enumerate(prompts):
        core.submit(_ask(str(index), prompt, max_tokens=40, score_from=5))
    while core.busy:
        scores |= {d.request: d.scores for d in core.step() if d.finish}
    assert core.stats().batch.preemptions > 0
    for index, prompt in enumerate(prompts):
        wanted = oracle.logits(prompt).log_softmax(-1)
        found = [wanted[at - 1, prompt[at]].item() for at in range(5, 60)]
        assert scores[str(index)] == pytest.approx(found, abs=1e-4)


def test_a_conversation_moves_to_another_engine(oracle: Any, run_core: Run) -> None:
    if oracle.family == "mistral":
        pytest.skip("behind a sliding window the beginning is gone")
    here, there = oracle.engine(), oracle.engine()
    tokens = _prompts(18, 1, 70, 70)[0]
    here.submit(_ask("0", tokens, "chat"))
    tokens = tokens + run_core(here)["0"] + [9]
    reply = there.handle(do.Import("chat", here.handle(do.Export("chat"))))
    assert reply.status is LeaseStatus.ACCEPTED
    there.submit(_ask("1", tokens, "chat"))
    oracle.follows(tokens, run_core(there)["1"])
    assert there.stats().cache.hit_tokens == len(tokens) - 2


def test_a_request_that_goes_on_says_what_it_would_have_said(oracle: Any, run_core: Run) -> None:
    core, params = oracle.engine(), SamplingParams(max_tokens=20, temperature=1.0, ignore_eos=True)
    prompt = tuple(_prompts(19, 1, 30, 30)[0])
    core.submit(GenerateRequest("a", "x", prompt, params))
    whole = run_core(core)["a"]
    core.submit(GenerateRequest("b", "x", (*prompt, *whole[:8]), params, resumed_tokens=8))
    assert run_core(core)["b"] == whole[8:]


def test_logprobs_are_those_of_the_model(oracle: Any) -> None:
    core = oracle.engine()
    prompt = _prompts(11, 1, 30, 30)[0]
    core.submit(_ask("a", prompt, logprobs=True, top_logprobs=3))
    tokens: list[int] = []
    logprobs: list[float] = []
    tops: list[tuple[tuple[int, float], ...]] = []
    while core.busy:
        for delta in core.step():
            tokens += delta.tokens
            logprobs += delta.logprobs
            tops += delta.tops
    wanted = oracle.logits(prompt + tokens).log_softmax(-1)
    for index, (token, value) in enumerate(zip(tokens, logprobs, strict=True)):
        row = wanted[len(prompt) + index - 1]
        assert abs(row[token].item() - value) < 1e-4
        best = row.topk(3).values.tolist()
        assert [p for _, p in tops[index]] == pytest.approx(best, abs=1e-4)
