"""200 greedy tokens equal transformers' under every pair of circumstances: a covering array over
family, host, batch, chunk, memory, what went before, and the order of arrival."""

import asyncio
import random
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import pytest

from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.config import EngineConfig
from drawloom.engine.hosting.client import EngineClient
from drawloom.engine.hosting.process_engine import ProcessEngine
from drawloom.engine.hosting.thread_engine import ThreadEngine
from drawloom.engine.sequence import SamplingParams
from tests.lanes import slow_unless

COUNT, PREFIX = 200, 37
AXES: dict[str, tuple[Any, ...]] = {
    "family": ("llama", "mistral", "qwen2", "qwen3", "llama-tied-scaled"),
    "chunk": (1, 15, 16, 17, 64),
    "before": ("nothing", "prefix", "fork", "return"),
    "memory": ("ample", "tight", "tiered"),
    "batch": (1, 64),
    "order": ("given", "shuffled"),
    "host": ("thread", "process"),
}


def _pairs(case: dict[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(combinations(case.items(), 2))


def _all_pairs() -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return {
        ((a, x), (b, y))
        for (a, xs), (b, ys) in combinations(AXES.items(), 2)
        for x, y in product(xs, ys)
    }


def _covering() -> list[dict[str, Any]]:
    """Cases, each the one of many random ones that covers most pairs not yet covered."""
    rng, cases = random.Random(1), []
    left = {
        ((a, x), (b, y)) for a, b in combinations(AXES, 2) for x, y in product(AXES[a], AXES[b])
    }
    while left:
        some = [{n: rng.choice(v) for n, v in AXES.items()} for _ in range(200)]
        best = max(some, key=lambda case: len(_pairs(case) & left))
        if _pairs(best) & left:
            cases.append(best)
            left -= _pairs(best)
    return cases


CASES = _covering()


async def _say(
    engine: EngineClient, name: str, conversation: str, tokens: list[int], count: int
) -> list[int]:
    params = SamplingParams(max_tokens=count, ignore_eos=True)
    request = GenerateRequest(name, conversation, tuple(tokens), params)
    return [t for delta in [d async for d in engine.generate(request)] for t in delta.tokens]


async def _before(engine: EngineClient, case: dict[str, Any], trunk: list[int]) -> None:
    """Leave something of `trunk` behind, in the way that the case says."""
    if case["before"] == "nothing":
        return
    await _say(engine, "trunk", "trunk", trunk, 1)
    if case["before"] == "fork":
        for index in range(case["batch"]):
            await engine.fork("trunk", f"l{index}")
    if case["before"] == "return":  # demoted, where there is host memory, and pushed out
        await engine.demote("trunk")
        rng = random.Random(9)
        for index in range(4):
            stranger = [rng.randrange(3, 259) for _ in range(200)]
            await _say(engine, f"s{index}", f"s{index}", stranger, 2)


async def _run(engine: EngineClient, case: dict[str, Any], check: Callable[..., None]) -> None:
    rng = random.Random(4)
    trunk = [rng.randrange(3, 259) for _ in range(PREFIX)]
    prompts = [
        trunk[: PREFIX if case["before"] != "nothing" else rng.randint(1, PREFIX)]
        + [rng.randrange(3, 259) for _ in range(rng.randint(1, 12))]
        for _ in range(case["batch"])
    ]
    order = list(range(case["batch"]))
    if case["order"] == "shuffled":
        rng.shuffle(order)
    await _before(engine, case, trunk)
    said = await asyncio.gather(*(_say(engine, str(i), f"l{i}", prompts[i], COUNT) for i in order))
    for index, tokens in zip(order, said, strict=True):
        assert len(tokens) == COUNT
        check(prompts[index], tokens)
    stats = await engine.stats()
    assert (stats.batch.running, stats.batch.waiting) == (0, 0)
    windowed = case["family"] == "mistral"  # holds its window only, so all of them fit
    if case["memory"] != "ample" and case["batch"] > 1 and case["chunk"] > 1 and not windowed:
        assert stats.batch.preemptions > 0
    if case["before"] in ("prefix", "fork"):
        assert stats.cache.hit_tokens + stats.cache.hit_host_tokens > 0


@pytest.mark.parametrize(
    "case", slow_unless(CASES, CASES[:3]), ids=lambda c: "-".join(str(v) for v in c.values())
)
async def test_two_hundred_tokens_are_those_of_transformers(
    family_oracle: Callable[[str], Any], case: dict[str, Any]
) -> None:
    oracle = family_oracle(case["family"])
    ample = 64 * 256
    tight = 288 if case["batch"] == 1 else 3072
    config = EngineConfig(
        kv_tokens=ample if case["memory"] == "ample" else tight,
        host_tokens=ample if case["memory"] == "tiered" else 0,
        max_batch_tokens=case["chunk"],
    )
    kind: Any = ThreadEngine if case["host"] == "thread" else ProcessEngine
    engine = await asyncio.to_thread(kind.load, str(oracle.folder), config)
    try:
        await _run(engine, case, oracle.follows)
    finally:
        await engine.close()


def test_every_pair_of_circumstances_is_among_the_cases() -> None:
    assert _all_pairs() <= set().union(*map(_pairs, CASES))
