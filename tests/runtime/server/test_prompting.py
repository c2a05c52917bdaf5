"""Prompts are made off the event loop, and what cannot fit is refused before much is spent."""

import asyncio
import threading
from typing import Any

import httpx
import pytest

from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import ContextTooLong
from drawloom.prompts import Prompt
from drawloom.runtime.dispatch.backends import tiny_model
from drawloom.runtime.server.app import Server
from drawloom.runtime.server.prompting import PromptBuilder
from drawloom.tools.chat_template import ChatTemplate


class _Counting(Tokenizer):
    """Counts the characters that it encodes."""

    characters = 0

    def encode(self, text: str | Prompt) -> list[int]:
        self.characters += len(Prompt.of(text).text)
        return super().encode(text)


def _prompts(limit: int) -> tuple[PromptBuilder, _Counting]:
    tokenizer = _Counting.load(tiny_model())
    assert isinstance(tokenizer, _Counting)
    return PromptBuilder(ChatTemplate.load(tiny_model()), tokenizer, limit), tokenizer


def test_of_a_text_that_is_far_too_long_little_is_encoded() -> None:
    prompts, tokenizer = _prompts(1000)
    with pytest.raises(ContextTooLong):
        prompts.check("word " * 400_000)
    assert tokenizer.characters < 200_000


def test_a_long_text_that_fits_has_the_tokens_of_the_whole() -> None:
    prompts, tokenizer = _prompts(1_000_000)
    text = "word of some length " * 10_000
    assert prompts.encode(Prompt(text)) == tokenizer.encode(text)


def test_no_token_stands_for_more_bytes_than_the_longest() -> None:
    tokenizer = Tokenizer.load(tiny_model())
    texts = [tokenizer.decode([id], special=True) for id in range(tokenizer.size)]
    assert max(len(text.encode()) for text in texts) <= tokenizer.longest() < 200


@pytest.fixture
async def served(open_runtime: Any) -> Any:
    runtime = await open_runtime(lambda prompt: "yes")
    server = Server(runtime)
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client, server
    await server.close()


def _body(text: str) -> Any:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 4}


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_what_cannot_fit_is_refused_unseen(
    served: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = served

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("rendered or encoded")

    monkeypatch.setattr(ChatTemplate, "render", never)
    monkeypatch.setattr(Tokenizer, "encode", never)
    monkeypatch.setattr(Tokenizer, "encode_with_specials", never)
    text = "hello world " * 1_250_000
    body = _body(text) if path == "chat/completions" else {"prompt": text}
    answer = await client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert f"maximum context length is {server.info.max_context} tokens" in error["message"]
    assert len(server.sessions) == 0


async def test_others_are_answered_while_a_prompt_is_made(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = served
    render, go = ChatTemplate.render, threading.Event()
    threads: set[threading.Thread] = set()

    def slow(self: ChatTemplate, messages: Any, *rest: Any) -> Prompt:
        threads.add(threading.current_thread())
        if messages[0]["content"] == "slow":
            assert go.wait(30)
        return render(self, messages, *rest)

    monkeypatch.setattr(ChatTemplate, "render", slow)
    held = asyncio.create_task(client.post("/v1/chat/completions", json=_body("slow")))
    try:
        while not threads:
            await asyncio.sleep(0.01)
        assert (await client.get("/health")).status_code == 200
        other = await client.post("/v1/chat/completions", json=_body("quick"))
        assert other.status_code == 200 and not held.done()
    finally:
        go.set()
    assert (await held).status_code == 200
    assert threading.main_thread() not in threads


async def test_a_prompt_that_fails_leaves_no_program(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = served

    def fails(*_: Any) -> Any:
        raise RuntimeError("no")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(ChatTemplate, "render", fails)
        await client.post("/v1/chat/completions", json=_body("hello"))
    assert len(server.sessions) == 0
    assert (await client.post("/v1/chat/completions", json=_body("hello"))).status_code == 200
