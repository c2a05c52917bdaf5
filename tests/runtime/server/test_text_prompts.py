"""Text that stands alone begins as the tokenizer's post-processor says; a rendered chat does not
get that a second time."""

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import processors

from drawloom.engine.config import EngineConfig
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.runtime.dispatch.backends import tiny_model
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.runtime.server.app import Server

_BOS = "<|endoftext|>"
_TEXT = "hello world"


@pytest.fixture
def with_bos(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_model(), tmp_path / "model"))
    made = HfTokenizer.from_file(str(folder / "tokenizer.json"))
    bos = (_BOS, made.token_to_id(_BOS))
    made.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", pair=f"{_BOS} $A $B", special_tokens=[bos]
    )
    made.save(str(folder / "tokenizer.json"))
    return folder


@contextlib.asynccontextmanager
async def _client(model: Path) -> AsyncIterator[httpx.AsyncClient]:
    engine = EngineConfig(kv_tokens=4096)
    async with Runtime(str(model), sandbox="none", engine=engine, record=False) as runtime:
        server = Server(runtime, name="m")
        transport = httpx.ASGITransport(app=server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client
        await server.close()


async def _post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await client.post(f"/v1/{path}", json={"temperature": 0, "max_tokens": 3, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_text_begins_as_the_tokenizer_says(with_bos: Path) -> None:
    plain = Tokenizer.load(with_bos).encode(_TEXT)
    assert Tokenizer.load(with_bos).encode_with_specials(_TEXT)[1:] == plain
    async with _client(with_bos) as client:
        text = await _post(client, "completions", prompt=_TEXT)
        both = await _post(client, "completions", prompt=[_TEXT, _TEXT])
        ids = await _post(client, "completions", prompt=plain)
        chat = await _post(client, "chat/completions", messages=[{"role": "user", "content": "hi"}])
    async with _client(tiny_model()) as client:
        same = await _post(client, "chat/completions", messages=[{"role": "user", "content": "hi"}])
    assert text["usage"]["prompt_tokens"] == len(plain) + 1
    assert both["usage"]["prompt_tokens"] == 2 * (len(plain) + 1)
    assert ids["usage"]["prompt_tokens"] == len(plain)
    assert chat["usage"]["prompt_tokens"] == same["usage"]["prompt_tokens"]


async def test_an_echo_is_the_text_that_was_given_and_scores_behind_its_beginning(
    with_bos: Path,
) -> None:
    async with _client(with_bos) as client:
        body = {"prompt": _TEXT, "echo": True, "logprobs": 1}
        choice = (await _post(client, "completions", **body))["choices"][0]
    found = choice["logprobs"]
    assert choice["text"].startswith(_TEXT)
    assert found["tokens"][0] == _BOS
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1] <= 0
    assert found["text_offset"][:3] == [0, 0, len(found["tokens"][1])]


async def test_without_a_post_processor_nothing_is_added() -> None:
    tokenizer = Tokenizer.load(tiny_model())
    assert tokenizer.encode_with_specials(_TEXT) == tokenizer.encode(_TEXT)
