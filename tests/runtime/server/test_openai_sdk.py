"""The server as OpenAI's own client sees it: its types, its errors, its meaning of tools."""

import contextlib
import json
from collections.abc import AsyncIterator
from enum import Enum
from typing import Any, Literal

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, ConfigDict

from drawloom.engine.config import EngineConfig
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.runtime.server.app import Server

CALLS = "".join(
    f'<tool_call>\n{{"name": "{name}", "arguments": {{"n": {n}}}}}\n</tool_call>\n'
    for n, name in enumerate(("get", "put"))
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"n": {"enum": [1, 2]}},
                "required": ["n"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("get", "put")
]
Json = dict[str, Any]


@contextlib.asynccontextmanager
async def _client(runtime: Runtime) -> AsyncIterator[Any]:
    server = Server(runtime, name="m")
    transport: Any = httpx.ASGITransport(app=server.app)
    http: Any = httpx.AsyncClient(transport=transport)
    async with openai.AsyncOpenAI(
        api_key="none", base_url="http://localhost/v1", http_client=http, max_retries=0
    ) as client:
        yield client
    await server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny() -> AsyncIterator[Any]:
    config = EngineConfig(kv_tokens=8192)
    runtime = Runtime(sandbox="none", engine=config, record=False)
    async with runtime, _client(runtime) as client:
        yield client


def _ask(**more: Any) -> Json:
    messages = [{"role": "user", "content": "hi"}]
    return {"model": "m", "messages": messages, "temperature": 0, **more}


async def _raw(client: Any, path: str, body: Json) -> list[Json]:
    """The answer as JSON, whole, and then the events of the stream."""
    url = f"http://localhost/v1{path}"
    whole = await client._client.post(url, json=body)
    assert whole.status_code == 200, whole.text
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = await client._client.post(url, json={**body, **options})
    lines = [line for line in stream.text.split("\n\n") if line.startswith("data: {")]
    return [whole.json(), *(json.loads(line.removeprefix("data: ")) for line in lines)]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 5},
        {"max_completion_tokens": 5, "n": 2},
        {"max_tokens": 5, "logprobs": True, "top_logprobs": 2},
        {"max_tokens": 5, "logprobs": True, "top_logprobs": 0},
        {"max_tokens": 60, "tools": TOOLS, "tool_choice": "required"},
        {"max_tokens": 60, "tools": TOOLS, "tool_choice": TOOLS[0]},
        {"max_tokens": 5, "tools": TOOLS, "tool_choice": "none", "stop": ["q"], "seed": -1},
        {"max_tokens": 30, "response_format": {"type": "json_object"}, "user": "雪"},
    ],
)
async def test_answers_are_of_the_sdk_s_types(tiny: Any, more: Json) -> None:
    whole, *events = await _raw(tiny, "/chat/completions", _ask(**more))
    answer = ChatCompletion.model_validate(whole, strict=True)
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events]
    assert len(answer.choices) == more.get("n", 1)
    counts = [(u.prompt_tokens, u.total_tokens) for u in (answer.usage, chunks[-1].usage) if u]
    assert len(counts) == 2 and counts[0] == counts[1]
    assert {c.id for c in chunks} == {chunks[0].id}
    for choice in answer.choices:
        assert choice.message.refusal is None and choice.message.annotations is None
        parts = [p for c in chunks for p in c.choices if p.index == choice.index]
        assert [p.finish_reason for p in parts if p.finish_reason] == [choice.finish_reason]
        if more.get("logprobs"):
            assert choice.logprobs is not None and choice.logprobs.content is not None
            assert all(p.logprobs is not None for p in parts)
        if more.get("tool_choice") not in (None, "none"):
            assert choice.finish_reason == "tool_calls" and choice.message.tool_calls


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"n": 2, "stop": "e"}])
async def test_completions_are_of_the_sdk_s_types(tiny: Any, more: Json) -> None:
    body = {"model": "m", "prompt": "hello", "max_tokens": 5, "temperature": 0, **more}
    whole, *events = await _raw(tiny, "/completions", body)
    assert Completion.model_validate(whole, strict=True).choices
    for event in events:
        for choice in event["choices"]:  # the SDK's type has no null here, OpenAI's stream has
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        Completion.model_validate(event, strict=True)


class Kind(Enum):
    FRUIT = "fruit"
    TOOL = "tool"


class Size(BaseModel):
    model_config = ConfigDict(extra="forbid")
    unit: Literal["m", "kg"]


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Kind
    size: Size | None


class Order(BaseModel):
    """An order."""

    model_config = ConfigDict(extra="forbid")
    first: Item
    second: Item
    urgent: bool


@pytest.mark.asyncio(loop_scope="module")
async def test_nested_models_are_forced_as_tools_and_as_answers(tiny: Any) -> None:
    function = {"name": "Order", "parameters": Order.model_json_schema(), "description": None}
    tools: Any = [{"type": "function", "function": function}]
    choice: Any = {"type": "function", "function": {"name": "Order"}}
    made = await tiny.chat.completions.create(
        **_ask(max_tokens=300, tools=tools, tool_choice=choice)
    )
    (call,) = made.choices[0].message.tool_calls
    Order.model_validate_json(call.function.arguments)
    answered = await tiny.chat.completions.parse(**_ask(max_tokens=300), response_format=Order)
    assert isinstance(answered.choices[0].message.parsed, Order)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_context_that_is_too_long_has_openai_s_code(tiny: Any) -> None:
    long = [{"role": "user", "content": "word " * 3000}]
    for stream in (True, False):
        with pytest.raises(openai.BadRequestError) as caught:
            await tiny.chat.completions.create(**_ask(stream=stream) | {"messages": long})
        assert caught.value.code == "context_length_exceeded"
        assert "This model's maximum context length is 2048 tokens. However" in str(caught.value)
    with pytest.raises(openai.BadRequestError) as caught:
        await tiny.completions.create(model="m", prompt="word " * 3000)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"


@pytest.mark.asyncio(loop_scope="module")
async def test_errors_have_openai_s_classes_and_codes(tiny: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await tiny.chat.completions.create(**_ask() | {"model": "gpt"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as unknown:
        await tiny.responses.create(model="m", input="hi")
    assert unknown.value.code == "unknown_url"
    with pytest.raises(openai.BadRequestError) as wrong:
        await tiny.chat.completions.create(**_ask(temperature=9))
    assert wrong.value.param == "temperature"


@pytest.mark.asyncio(loop_scope="module")
async def test_the_turn_after_one_call_finds_all_that_came_before(tiny: Any) -> None:
    command = {"type": "object", "properties": {"command": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "shell", "parameters": command}}]
    turns: list[Any] = [{"role": "user", "content": "What is the sum of a.txt and b.txt?"}]
    body = {"model": "m", "messages": turns, "tools": tools, "temperature": 0, "max_tokens": 90}
    several = await tiny.chat.completions.create(**body)
    assert len(several.choices[0].message.tool_calls) > 1
    one = await tiny.chat.completions.create(**body, parallel_tool_calls=False)
    (call,) = one.choices[0].message.tool_calls
    assert call.function == several.choices[0].message.tool_calls[0].function
    assert one.choices[0].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "7"}
    body["messages"] = [*turns, one.choices[0].message.model_dump(exclude_none=True), result]
    after = await tiny.chat.completions.create(**body)
    assert after.usage.prompt_tokens_details.cached_tokens >= one.usage.total_tokens - 1


async def _both(client: Any, body: Json) -> list[tuple[Any, ...]]:
    """What a whole answer and a stream say: text, names of calls, reason, output tokens."""
    whole = await client.chat.completions.create(**body)
    message = whole.choices[0].message
    names = [call.function.name for call in message.tool_calls or []]
    said = [(message.content or "", names, whole.choices[0].finish_reason, whole.usage)]
    text, names, reason, usage = "", [], None, None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async for chunk in await client.chat.completions.create(**body, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for part in choice.delta.tool_calls or []:
                names += [part.function.name] if part.function.name else []
    return [*said, (text, names, reason, usage)]


async def test_none_is_text_even_of_a_model_that_writes_a_call(open_runtime: Any) -> None:
    runtime = await open_runtime(lambda prompt: f"Well. {CALLS}")
    async with _client(runtime) as client:
        for said in await _both(client, _ask(tools=TOOLS, tool_choice="none")):
            assert said[:3] == (f"Well. {CALLS}", [], "stop")
        await _both(client, _ask(tools=TOOLS))
        assert len(set(runtime.dispatcher.engine.prompts)) == 1  # one conversation keeps one prompt


@pytest.mark.parametrize("choice", [None, "auto"])
async def test_without_parallel_calls_an_answer_ends_after_one(
    open_runtime: Any, choice: str | None
) -> None:
    runtime = await open_runtime(lambda prompt: f"Well. {CALLS} and more")
    async with _client(runtime) as client:
        body = _ask(tools=TOOLS, tool_choice=choice)
        for said in await _both(client, body):
            assert said[1:3] == (["get", "put"], "tool_calls")
            everything = said[3].completion_tokens
        for said in await _both(client, body | {"parallel_tool_calls": False}):
            assert said[0].strip() == "Well."
            assert said[1:3] == (["get"], "tool_calls")
            assert said[3].completion_tokens < everything
