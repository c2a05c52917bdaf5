"""The engine in its thread: streams, cancellation, leases, failures."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from drawloom.engine.base import Delta, GenerateRequest
from drawloom.engine.local import LocalEngine
from drawloom.engine.plan import Sampled, StepPlan
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.errors import ContextTooLong, EngineClosed, EngineError
from drawloom.leases import LeaseStatus


@pytest.fixture
async def engine(llama: Any) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(llama.engine(kv_tokens=1024))
    yield engine
    await engine.close()


def _ask(name: str, length: int = 20, **options: Any) -> GenerateRequest:
    params = SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **options})
    return GenerateRequest(name, name, tuple(range(3, 3 + length)), params)


async def _all(engine: LocalEngine, request: GenerateRequest) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


async def test_a_stream_ends_with_its_usage(engine: LocalEngine) -> None:
    deltas = await _all(engine, _ask("a"))
    last = deltas[-1]
    assert last.finish is FinishReason.LENGTH
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.output_tokens) == (20, 8)
    assert last.usage.submitted <= last.usage.started <= last.usage.first <= last.usage.finished
    assert sum(len(d.tokens) for d in deltas) == 8


async def test_streams_run_side_by_side(engine: LocalEngine, llama: Any) -> None:
    requests = [_ask(f"r{i}", 5 + i) for i in range(10)]
    answers = await asyncio.gather(*(_all(engine, r) for r in requests))
    for request, deltas in zip(requests, answers, strict=True):
        assert [t for d in deltas for t in d.tokens] == llama.greedy(list(request.tokens), 8)


async def test_closing_a_stream_frees_its_blocks(engine: LocalEngine) -> None:
    stream = engine.generate(_ask("a", max_tokens=400))
    async for _ in stream:
        break
    await stream.aclose()
    stats = await engine.stats()
    assert (stats.running, stats.waiting, stats.held_blocks) == (0, 0, 0)


async def test_a_stop_string_cuts_the_text_even_across_tokens(engine: LocalEngine) -> None:
    plain = "".join(d.text for d in await _all(engine, _ask("a", max_tokens=40)))
    stop = plain[10:13]
    deltas = await _all(engine, _ask("b", max_tokens=40, stop=(stop,)))
    assert "".join(d.text for d in deltas) == plain[: plain.find(stop)]
    assert deltas[-1].finish is FinishReason.STOP


async def test_a_prompt_that_is_too_long_is_an_error_of_that_request(engine: LocalEngine) -> None:
    with pytest.raises(ContextTooLong):
        await _all(engine, GenerateRequest("a", "a", tuple([5] * 2000)))
    assert len(await _all(engine, _ask("b"))) == 8


async def test_a_token_outside_the_vocabulary_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(EngineError, match="vocabulary"):
        await _all(engine, GenerateRequest("a", "a", (5, 100_000)))


async def test_leases_are_answered(engine: LocalEngine) -> None:
    await _all(engine, _ask("a"))
    assert (await engine.lease("a", 10.0, 1.0)).status is LeaseStatus.ACCEPTED
    assert (await engine.stats()).leased_blocks > 0
    assert (await engine.fork("a", "b")).tokens == 27
    await engine.release("a")
    await engine.release("b")
    stats = await engine.stats()
    assert (stats.leased_blocks, stats.lineages, stats.held_blocks) == (0, 0, 0)


async def test_a_request_that_breaks_the_model_harms_no_other(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: Any = engine._core._runner
    run: Any = runner.run

    def fragile(plan: StepPlan) -> dict[str, Sampled]:
        if any(c.seq.id == "bad" for c in plan.chunks):
            raise MemoryError("out of memory")
        result: dict[str, Sampled] = run(plan)
        return result

    monkeypatch.setattr(runner, "run", fragile)
    names = ["a", "bad", "b"]
    results = await asyncio.gather(*(_all(engine, _ask(n)) for n in names), return_exceptions=True)
    assert isinstance(results[1], EngineError)
    assert "out of memory" in str(results[1])
    assert [len(r) for r in (results[0], results[2]) if isinstance(r, list)] == [8, 8]


async def test_a_closed_engine_says_so_and_ends_its_streams(llama: Any) -> None:
    engine = LocalEngine(llama.engine())
    stream = engine.generate(_ask("a", max_tokens=400))
    await anext(stream)
    await engine.close()
    with pytest.raises(EngineClosed):
        async for _ in stream:
            pass
    with pytest.raises(EngineClosed):
        await engine.stats()
