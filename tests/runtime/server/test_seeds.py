"""A request with a seed repeats, whoever sends it; without one it is drawn anew."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from drawloom.engine.config import EngineConfig
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.runtime.server.app import Server

Json = dict[str, Any]


@contextlib.asynccontextmanager
async def _client(model: str | Path = "tinyagent") -> AsyncIterator[httpx.AsyncClient]:
    engine = EngineConfig(kv_tokens=8192)
    async with Runtime(str(model), sandbox="none", engine=engine, record=False) as runtime:
        server = Server(runtime, name="m")
        transport = httpx.ASGITransport(app=server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client
        await server.close()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with _client() as made:
        yield made


_SAMPLED: Json = {"temperature": 2.0, "max_tokens": 16, "ignore_eos": True}
_PROMPTS: dict[str, Json] = {
    "completions": {"prompt": "hello world"},
    "chat/completions": {"messages": [{"role": "user", "content": "hello world"}]},
}


async def _texts(client: httpx.AsyncClient, path: str, **more: Any) -> list[str]:
    answer = await client.post(f"/v1/{path}", json={**_SAMPLED, **_PROMPTS[path], **more})
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    return [c["text"] if "text" in c else c["message"]["content"] for c in choices]


@pytest.mark.parametrize("path", _PROMPTS)
@pytest.mark.parametrize("seed", [0, 42, -7])
async def test_the_same_request_with_a_seed_has_the_same_answers(
    client: Any, path: str, seed: int
) -> None:
    alone = await _texts(client, path, seed=seed, n=3)
    assert len(set(alone)) > 1
    named = await _texts(client, path, seed=seed, n=3, program_id="a name of its own")
    assert named == alone
    crowd = [_texts(client, path, n=2) for _ in range(3)]
    again, *_ = await asyncio.gather(_texts(client, path, seed=seed, n=3), *crowd)
    assert again == alone


@pytest.mark.parametrize("path", _PROMPTS)
async def test_a_seed_means_the_same_in_another_process(path: str) -> None:
    answers = []
    for _ in range(2):
        async with _client() as client:
            answers.append(await _texts(client, path, seed=5))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("path", _PROMPTS)
async def test_other_seeds_and_no_seed_have_other_answers(client: Any, path: str) -> None:
    seeded = [text for seed in range(6) for text in await _texts(client, path, seed=seed)]
    drawn = [text for _ in range(6) for text in await _texts(client, path)]
    assert len(set(seeded)) > 2  # the model is sure of some tokens: two may be equal by chance
    assert len(set(drawn)) > 2
