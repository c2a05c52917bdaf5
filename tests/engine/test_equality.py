"""Greedy output equals transformers token for token, whatever happens in between."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from drawloom.engine.base import GenerateRequest
from drawloom.engine.sequence import SamplingParams

Run = Callable[[Any], dict[str, list[int]]]
COUNT = 24


def _prompts(seed: int, count: int, shortest: int = 1, longest: int = 90) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        [rng.randrange(3, 259) for _ in range(rng.randint(shortest, longest))] for _ in range(count)
    ]


def _ask(
    name: str, prompt: list[int], lineage: str | None = None, **options: Any
) -> GenerateRequest:
    params = SamplingParams(**{"max_tokens": COUNT, "ignore_eos": True, **options})
    return GenerateRequest(name, lineage or name, tuple(prompt), params)


@pytest.mark.parametrize("chunk", [1, 15, 16, 17, 64, 512])
def test_any_chunk_size_gives_the_tokens_of_transformers(
    oracle: Any, run_core: Run, chunk: int
) -> None:
    core = oracle.engine(max_batch_tokens=chunk)
    prompts = _prompts(1, 4)
    for index, prompt in enumerate(prompts):
        core.submit(_ask(str(index), prompt))
    out = run_core(core)
    assert out == {str(i): oracle.greedy(p, COUNT) for i, p in enumerate(prompts)}


def test_a_batch_in_any_order_gives_the_same_tokens(oracle: Any, run_core: Run) -> None:
    prompts = _prompts(2, 16, longest=40)
    order = list(range(16))
    random.Random(3).shuffle(order)
    core = oracle.engine()
    for index in order:
        core.submit(_ask(str(index), prompts[index]))
    out = run_core(core)
    assert out == {str(i): oracle.greedy(p, COUNT) for i, p in enumerate(prompts)}


def test_prefix_hits_change_nothing_and_save_the_prefill(oracle: Any, run_core: Run) -> None:
    core = oracle.engine()
    shared = _prompts(4, 1, 50, 50)[0]
    prompts = [shared + tail for tail in _prompts(5, 4, 1, 20)]
    for index, prompt in enumerate(prompts):
        core.submit(_ask(str(index), prompt))
        assert run_core(core)[str(index)] == oracle.greedy(prompt, COUNT)
    assert core.stats().hit_tokens >= 3 * len(shared)


def test_a_returning_conversation_recomputes_nothing(oracle: Any, run_core: Run) -> None:
    core = oracle.engine()
    tokens = _prompts(6, 1, 21, 21)[0]
    for turn, more in enumerate(_prompts(7, 4, 3, 9)):
        core.submit(_ask(str(turn), tokens, "chat"))
        said = run_core(core)[str(turn)]
        assert said == oracle.greedy(tokens, COUNT)
        tokens = tokens + said + more
    assert core.stats().recomputed_tokens == 0


def test_forks_copy_the_partial_block_and_do_not_disturb_each_other(
    oracle: Any, run_core: Run
) -> None:
    core = oracle.engine()
    trunk = _prompts(8, 1, 37, 37)[0]
    core.submit(_ask("trunk", trunk))
    trunk = trunk + run_core(core)["trunk"]
    branches = [trunk + tail for tail in _prompts(9, 4, 2, 12)]
    for index, prompt in enumerate(branches):
        core.fork("trunk", f"branch-{index}")
        core.submit(_ask(str(index), prompt, f"branch-{index}"))
    out = run_core(core)
    assert out == {str(i): oracle.greedy(p, COUNT) for i, p in enumerate(branches)}
    assert core.stats().recomputed_tokens == 0


def test_preemption_and_eviction_change_nothing(oracle: Any, run_core: Run) -> None:
    core = oracle.engine(kv_tokens=208, max_batch_tokens=33)
    prompts = _prompts(10, 10, 5, 60)
    for index, prompt in enumerate(prompts):
        core.submit(_ask(str(index), prompt))
    out = run_core(core)
    assert out == {str(i): oracle.greedy(p, COUNT) for i, p in enumerate(prompts)}
    assert core.stats().preemptions > 0


def test_logprobs_are_those_of_the_model(oracle: Any) -> None:
    core = oracle.engine()
    prompt = _prompts(11, 1, 30, 30)[0]
    core.submit(_ask("a", prompt, logprobs=True))
    tokens: list[int] = []
    logprobs: list[float] = []
    while core.busy:
        for delta in core.step():
            tokens += delta.tokens
            logprobs += delta.logprobs
    wanted = oracle.logits(prompt + tokens).log_softmax(-1)
    for index, (token, value) in enumerate(zip(tokens, logprobs, strict=True)):
        assert abs(wanted[len(prompt) + index - 1, token].item() - value) < 1e-4
