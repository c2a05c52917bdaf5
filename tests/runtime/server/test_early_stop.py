"""An answer that is ended before the model ends it."""

from collections.abc import AsyncIterator

import pytest

from drawloom.engine.api.engine import Delta, GenerateRequest
from drawloom.engine.config import EngineConfig
from drawloom.engine.hosting.client import EngineClient
from drawloom.engine.hosting.process_engine import ProcessEngine
from drawloom.engine.hosting.thread_engine import ThreadEngine
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.runtime.dispatch.backends import tiny_model
from drawloom.runtime.server.early_stop import generate_until


@pytest.fixture
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[EngineClient]:
    engine: EngineClient = request.param.load(str(tiny_model()), EngineConfig(kv_tokens=4096))
    yield engine
    await engine.close()


async def _generate(
    engine: EngineClient, tokens: tuple[int, ...], id: str, after: int
) -> list[Delta]:
    request = GenerateRequest(id, "l", tokens, SamplingParams(max_tokens=40, ignore_eos=True))
    deltas: list[Delta] = []

    def enough() -> bool:
        return sum(len(d.tokens) for d in deltas) >= after

    async for delta in generate_until(engine, request, enough):
        deltas.append(delta)
    return deltas


@pytest.mark.parametrize(
    ("engine", "after"),
    [
        (ThreadEngine, 1),
        (ThreadEngine, 5),
        (ThreadEngine, 40),
        (ThreadEngine, 99),
        (ProcessEngine, 5),
    ],
    indirect=["engine"],
)
async def test_it_ends_with_the_usage_of_what_was_taken(engine: EngineClient, after: int) -> None:
    prompt = tuple(engine.tokenizer.encode("Tell me of the sea, of the sea and of the sea. " * 3))
    deltas = await _generate(engine, prompt, "a", after)
    ids = tuple(token for delta in deltas for token in delta.tokens)
    assert len(ids) == min(after, 40)
    assert [d.finish for d in deltas if d.finish] == [deltas[-1].finish]
    assert deltas[-1].finish is (FinishReason.STOP if after < 40 else FinishReason.LENGTH)
    usage = deltas[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.output_tokens) == (len(prompt), len(ids))
    stats = await engine.stats()
    assert stats.batch.running == stats.batch.waiting == 0
    again = (await _generate(engine, prompt + ids, "b", 2))[-1].usage
    assert again is not None and again.cached_tokens >= len(prompt) - 16
