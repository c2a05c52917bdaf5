"""Contract of both engines, in a thread and in a child process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import Delta, EngineStats, GenerateRequest, Grammar
from drawloom.engine.config import EngineConfig
from drawloom.engine.core.step_plan import Sampled, StepPlan
from drawloom.engine.hosting.client import EngineClient
from drawloom.engine.hosting.process_engine import ProcessEngine
from drawloom.engine.hosting.thread_engine import ThreadEngine
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.errors import CheckpointError, ConfigError, ContextTooLong, EngineClosed, EngineError
from drawloom.leases import LeaseStatus

CONFIG = EngineConfig(kv_tokens=1024, host_tokens=1024)


@pytest.fixture(scope="module", params=["thread", "process"])
def kind(request: pytest.FixtureRequest) -> type[EngineClient]:
    return ThreadEngine if request.param == "thread" else ProcessEngine


@pytest.fixture
async def engine(llama: Any, kind: Any) -> AsyncIterator[EngineClient]:
    engine = await asyncio.to_thread(kind.load, str(llama.folder), CONFIG)
    yield engine
    await engine.close()


@pytest.fixture
async def thread(llama: Any) -> AsyncIterator[ThreadEngine]:
    engine = ThreadEngine(llama.engine(kv_tokens=1024))
    yield engine
    await engine.close()


@pytest.fixture
async def process(llama: Any) -> AsyncIterator[ProcessEngine]:
    engine = await asyncio.to_thread(ProcessEngine.load, str(llama.folder), CONFIG)
    yield engine
    await engine.close()


def _ask(name: str, length: int = 20, **options: Any) -> GenerateRequest:
    params = SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **options})
    return GenerateRequest(name, name, tuple(range(3, 3 + length)), params)


async def _all(engine: EngineClient, request: GenerateRequest) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


async def _settled(engine: EngineClient) -> EngineStats:
    """When the copies in flight have arrived and let go of their blocks."""
    for _ in range(500):
        stats = await engine.stats()
        if not stats.cache.held_blocks:
            return stats
        await asyncio.sleep(0.01)
    raise AssertionError(f"still held: {stats}")


async def test_a_stream_ends_with_its_usage(engine: EngineClient) -> None:
    deltas = await _all(engine, _ask("a"))
    last = deltas[-1]
    assert last.finish is FinishReason.LENGTH
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.output_tokens) == (20, 8)
    assert last.usage.submitted <= last.usage.started <= last.usage.first <= last.usage.finished
    assert sum(len(d.tokens) for d in deltas) == 8


async def test_streams_run_side_by_side(engine: EngineClient, llama: Any) -> None:
    requests = [_ask(f"r{i}", 5 + i) for i in range(10)]
    answers = await asyncio.gather(*(_all(engine, r) for r in requests))
    for request, deltas in zip(requests, answers, strict=True):
        assert [t for d in deltas for t in d.tokens] == llama.greedy(list(request.tokens), 8)


async def test_closing_a_stream_frees_its_blocks(engine: EngineClient) -> None:
    stream = engine.generate(_ask("a", max_tokens=400))
    async for _ in stream:
        break
    await stream.aclose()
    stats = await engine.stats()
    assert (stats.batch.running, stats.batch.waiting, stats.cache.held_blocks) == (0, 0, 0)


async def test_a_stop_string_cuts_the_text_even_across_tokens(engine: EngineClient) -> None:
    plain = "".join(d.text for d in await _all(engine, _ask("a", max_tokens=40)))
    stop = plain[10:13]
    deltas = await _all(engine, _ask("b", max_tokens=40, stop=(stop,)))
    assert "".join(d.text for d in deltas) == plain[: plain.find(stop)]
    assert deltas[-1].finish is FinishReason.STOP


async def test_a_prompt_that_is_too_long_is_an_error_of_that_request(engine: EngineClient) -> None:
    with pytest.raises(ContextTooLong):
        await _all(engine, GenerateRequest("a", "a", tuple([5] * 2000)))
    assert len(await _all(engine, _ask("b"))) == 8


async def test_a_token_outside_the_vocabulary_is_refused(engine: EngineClient) -> None:
    with pytest.raises(EngineError, match="vocabulary"):
        await _all(engine, GenerateRequest("a", "a", (5, 100_000)))


async def test_leases_are_answered(engine: EngineClient) -> None:
    await _all(engine, _ask("a"))
    assert (await engine.lease("a", 10.0, 1.0)).status is LeaseStatus.ACCEPTED
    assert (await engine.stats()).cache.leased_blocks > 0
    assert (await engine.fork("a", "b")).tokens == 27
    await engine.release("a")
    await engine.release("b")
    stats = await _settled(engine)
    assert (stats.cache.leased_blocks, stats.cache.conversations) == (0, 0)


async def test_a_request_that_breaks_the_model_harms_no_other(
    thread: ThreadEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: Any = thread._core._runner
    run: Any = runner.run

    def fragile(plan: StepPlan) -> dict[str, Sampled]:
        if any(c.seq.id == "bad" for c in plan.chunks):
            raise MemoryError("out of memory")
        result: dict[str, Sampled] = run(plan)
        return result

    monkeypatch.setattr(runner, "run", fragile)
    names = ["a", "bad", "b"]
    results = await asyncio.gather(*(_all(thread, _ask(n)) for n in names), return_exceptions=True)
    assert isinstance(results[1], EngineError)
    assert "out of memory" in str(results[1])
    assert [len(r) for r in (results[0], results[2]) if isinstance(r, list)] == [8, 8]


async def test_a_closed_engine_ends_its_streams_with_an_error(llama: Any, kind: Any) -> None:
    engine = await asyncio.to_thread(kind.load, str(llama.folder), CONFIG)
    stream = engine.generate(_ask("a", max_tokens=400))
    await anext(stream)
    await engine.close()
    with pytest.raises(EngineClosed):
        async for _ in stream:
            pass
    with pytest.raises(EngineClosed):
        await engine.stats()


async def test_a_prompt_is_extended_scored_and_moved_between_the_tiers(
    engine: EngineClient, llama: Any
) -> None:
    tokens = tuple(range(3, 60))
    assert (await engine.extend("a", tokens[:40])).tokens == 40
    assert (await engine.extend("a", tokens)).status is LeaseStatus.ACCEPTED
    assert (await engine.demote("a")).tokens == len(tokens)
    await engine.tell(do.Sleep())
    await engine.tell(do.WakeUp())
    assert (await engine.prefetch("a")).tokens == len(tokens)
    deltas = await _all(engine, GenerateRequest("a", "a", (*tokens, 9), SamplingParams(4)))
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.cached_tokens == len(tokens)
    scores = await engine.score(tokens, [(5, 6, 7), (), (8,)])
    wanted = llama.logits([*tokens, 5, 6, 7]).log_softmax(-1)[len(tokens) - 1 :, :]
    assert scores[0] == pytest.approx([wanted[i, 5 + i].item() for i in range(3)], abs=1e-4)
    assert (scores[1], len(scores[2])) == ((), 1)
    assert (await engine.stats()).cache.conversations == 1
    with pytest.raises(EngineError, match="before"):
        await engine.score((), [(1,)])


async def test_a_conversation_is_exported_and_imported(engine: EngineClient) -> None:
    await _all(engine, _ask("a"))
    data = await engine.tell(do.Export("a"))
    assert (await engine.tell(do.Import("b", data, salt=b"other"))).tokens == 27
    with pytest.raises(EngineError, match="not KV"):
        await engine.tell(do.Import("c", data[:100]))
    with pytest.raises(EngineError, match="unknown"):
        await engine.tell(do.Export("nobody"))


async def test_new_weights_are_read_from_a_folder(engine: EngineClient, llama: Any) -> None:
    before = await _all(engine, _ask("a"))
    await engine.tell(do.UpdateWeights("v2", folder=str(llama.folder)))
    after = await _all(engine, _ask("b"))
    assert [d.tokens for d in after] == [d.tokens for d in before]
    assert (await engine.stats()).weights == "v2"
    with pytest.raises(CheckpointError):
        await engine.tell(do.UpdateWeights("v3", folder="/nowhere/at/all"))


async def test_a_grammar_that_does_not_compile_is_that_requests_error(engine: EngineClient) -> None:
    bad = GenerateRequest("a", "a", (5, 6), grammar=Grammar("regex", "("))
    with pytest.raises(ConfigError, match="regex"):
        await _all(engine, bad)
    assert len(await _all(engine, _ask("b"))) == 8


async def test_a_killed_child_fails_no_request_and_repeats_no_token(
    process: ProcessEngine, llama: Any
) -> None:
    requests = [_ask(f"r{i}", 10 + i, max_tokens=60, temperature=i / 4) for i in range(4)]
    thread = await asyncio.to_thread(ThreadEngine.load, str(llama.folder), CONFIG)
    told = [await _all(thread, r) for r in requests]
    wanted = [([t for d in ds for t in d.tokens], "".join(d.text for d in ds)) for ds in told]
    await thread.close()
    heard: list[int] = []

    async def listen(request: GenerateRequest) -> tuple[list[int], str]:
        tokens: list[int] = []
        text = ""
        async for delta in process.generate(request):
            tokens += delta.tokens
            text += delta.text
            heard.append(process.pid)
            if len(heard) in (20, 90):
                os.kill(process.pid, signal.SIGKILL)
        return tokens, text

    answers = await asyncio.gather(*(listen(r) for r in requests))
    assert answers == wanted
    assert len(set(heard)) == 3
    assert (await process.lease("r0", 1.0, 1.0)).status is not LeaseStatus.DEFERRED
    await _settled(process)


async def test_a_model_that_does_not_load_is_an_error_of_the_caller(kind: Any) -> None:
    with pytest.raises(CheckpointError):
        await asyncio.to_thread(kind.load, "/nowhere/at/all", CONFIG)


async def test_a_closed_process_leaves_no_child(llama: Any) -> None:
    engine = await asyncio.to_thread(ProcessEngine.load, str(llama.folder), CONFIG)
    pid = engine.pid
    await engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
