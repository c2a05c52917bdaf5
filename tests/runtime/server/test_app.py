"""The server on a real socket, with a scripted engine and with the model in the box."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from drawloom.engine.config import EngineConfig
from drawloom.engine.sequence import SamplingParams
from drawloom.errors import EngineError
from drawloom.runtime.scheduler.events import Forked
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.runtime.server.app import Server
from drawloom.runtime.server.conversation import ChatTurn, TextRequest
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.names import header_value, is_name
from drawloom.runtime.server.openai_requests import Message
from drawloom.runtime.server.serve import bind
from tests.fakes.scripted_engine import call
from tests.lanes import examples

CALL = call("get", city="Rome")
TOOL = {
    "type": "function",
    "function": {
        "name": "get",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
Json = dict[str, Any]


@contextlib.asynccontextmanager
async def _serving(runtime: Runtime, **options: Any) -> AsyncIterator[tuple[Any, Server]]:
    server = Server(runtime, **options)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    config = uvicorn.Config(server.app, log_level="warning", lifespan="off")
    web = uvicorn.Server(config)
    task = asyncio.create_task(web.serve(sockets=[listener]))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client, server
    web.should_exit = True
    await task
    await server.close()
    listener.close()


@pytest.fixture
async def tiny() -> AsyncIterator[tuple[httpx.AsyncClient, Server]]:
    config = EngineConfig(kv_tokens=8192, host_tokens=8192)
    async with (
        Runtime(sandbox="none", engine=config, record=False) as runtime,
        _serving(runtime, name="tiny") as both,
    ):
        yield both
        stats = await runtime.dispatcher.engine.stats()
        assert stats.batch.running == stats.batch.waiting == 0


@pytest.fixture
async def scripted(
    open_runtime: Callable[..., Any],
) -> AsyncIterator[Callable[..., Any]]:
    async with contextlib.AsyncExitStack() as stack:

        async def make(script: Any, pause: float = 0.0, **options: Any) -> Any:
            runtime = await open_runtime(script, pause)
            return await stack.enter_async_context(_serving(runtime, **options))

        yield make


@pytest.fixture
async def plain(scripted: Any) -> Any:
    return await scripted(lambda prompt: "yes")


def _ask(text: str = "hi", **more: Any) -> Json:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


async def _chunks(client: httpx.AsyncClient, body: Json, path: str = "chat/completions") -> Any:
    chunks = []
    async with client.stream("POST", f"/v1/{path}", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                chunks.append(line.removeprefix("data: "))
    assert chunks.pop() == "[DONE]"
    return [json.loads(c) for c in chunks]


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
async def test_a_client_sees_nothing_of_a_call_that_gives_way(scripted: Any, path: str) -> None:
    client, server = await scripted(lambda prompt: "one two three four five six")
    engine: Any = server.dispatcher.engine
    ask = {"prompt": "q"} if path == "completions" else _ask("q")
    body, streams = {**ask, "max_tokens": 40, "stream": True}, []
    for gives_way in (False, True):
        engine.gives_way = gives_way
        lines = (await client.post(f"/v1/{path}", json=body)).text.split("\n\n")
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        said = [choice for chunk in chunks for choice in chunk["choices"]]
        streams.append([choice.get("text") or choice.get("delta") for choice in said])
    assert streams[0] == streams[1]
    assert "three" in str(streams[0])


async def test_an_answer_has_its_usage_and_its_program(tiny: Any) -> None:
    client, _ = tiny
    first = (await client.post("/v1/chat/completions", json=_ask(max_tokens=6))).json()
    assert first["object"] == "chat.completion"
    assert first["choices"][0]["finish_reason"] in ("stop", "length")
    assert first["usage"]["total_tokens"] == (
        first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    )
    again = (await client.post("/v1/chat/completions", json=_ask(max_tokens=6))).json()
    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_a_stream_says_the_same_as_the_whole(tiny: Any) -> None:
    client, _ = tiny
    body = _ask("Read the file red-fox.txt", max_tokens=30, logprobs=True, top_logprobs=2)
    whole = (await client.post("/v1/chat/completions", json=body)).json()
    chunks = await _chunks(client, {**body, "stream_options": {"include_usage": True}})
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    said = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert said == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    logprobs = whole["choices"][0]["logprobs"]["content"]
    assert len(logprobs) == whole["usage"]["completion_tokens"]
    assert {len(entry["top_logprobs"]) for entry in logprobs} == {2}


async def test_a_call_is_streamed_name_first(scripted: Any) -> None:
    client, _ = await scripted(lambda prompt: f"Let me see.\n{CALL}")
    chunks = await _chunks(client, _ask(tools=[TOOL]))
    calls = [
        c["choices"][0]["delta"]["tool_calls"][0]
        for c in chunks
        if "tool_calls" in c["choices"][0]["delta"]
    ]
    assert calls[0]["function"] == {"name": "get", "arguments": ""}
    assert "".join(c["function"]["arguments"] for c in calls) == '{"city": "Rome"}'
    assert [c["function"].get("name") for c in calls] == ["get", None]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    whole = (await client.post("/v1/chat/completions", json=_ask(tools=[TOOL]))).json()
    message = whole["choices"][0]["message"]
    assert message["content"] == "Let me see."
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Rome"}


@pytest.mark.parametrize(
    "text",
    [
        f"{CALL}\n{CALL}",
        f"\nFirst.\n\n{CALL}\nThen.\n{CALL}\n",
        '<tool_call>{"arguments": {"city": "Rome"}, "name": "get"}</tool_call>',
        '<tool_call>{"name": "get", "arguments": {"city": ',
        "  No call. \n",
        CALL.replace('"get"', '"get", "name": "put"'),
    ],
)
async def test_a_client_builds_the_whole_answer_from_the_stream(scripted: Any, text: str) -> None:
    client, _ = await scripted(lambda prompt: text)
    body = _ask(tools=[TOOL], logprobs=True)
    whole = (await client.post("/v1/chat/completions", json=body)).json()
    state = ChatCompletionStreamState()
    for chunk in await _chunks(client, {**body, "stream_options": {"include_usage": True}}):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    streamed = state.current_completion_snapshot.model_dump()
    for answer in (whole, streamed):
        for made in answer["choices"][0]["message"].get("tool_calls") or ():
            assert len(made.pop("id")) == 9
    found, expected = streamed["choices"][0], whole["choices"][0]
    calls = [c["function"] for c in found["message"]["tool_calls"] or ()]
    assert [(c["name"], c["arguments"]) for c in calls] == [
        (c["function"]["name"], c["function"]["arguments"])
        for c in expected["message"].get("tool_calls", ())
    ]
    assert found["message"]["content"] == expected["message"]["content"]
    assert found["finish_reason"] == expected["finish_reason"]
    assert streamed["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


async def test_no_call_is_read_where_none_may_be_made(scripted: Any) -> None:
    client, _ = await scripted(lambda prompt: CALL)
    body = _ask(tools=[TOOL], tool_choice="none")
    choice = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


async def test_what_is_no_call_is_text_when_no_tool_was_given(scripted: Any) -> None:
    client, _ = await scripted(lambda prompt: CALL)
    whole = (await client.post("/v1/chat/completions", json=_ask())).json()
    assert whole["choices"][0]["message"]["content"] == CALL


async def test_thoughts_are_told_apart(scripted: Any) -> None:
    client, _ = await scripted(lambda prompt: "<think>hm</think>\nYes.", reasoning=True)
    message = (await client.post("/v1/chat/completions", json=_ask())).json()["choices"][0][
        "message"
    ]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes.")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get"}}])
async def test_a_forced_call_is_made_by_a_model_that_would_not(tiny: Any, choice: Any) -> None:
    client, _ = tiny
    body = _ask("x", tools=[TOOL], tool_choice=choice, max_tokens=60, parallel_tool_calls=False)
    answer = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    function = answer["message"]["tool_calls"][0]["function"]
    assert function["name"] == "get"
    assert json.loads(function["arguments"])["city"] in ("Rome", "Oslo")


async def test_an_answer_fits_the_schema_it_was_asked_for(tiny: Any) -> None:
    client, _ = tiny
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["n"],
        "additionalProperties": False,
    }
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = _ask("x", response_format=format_, max_tokens=40)
    answer = (await client.post("/v1/chat/completions", json=body)).json()
    assert 0 <= json.loads(answer["choices"][0]["message"]["content"])["n"] <= 99


async def test_several_choices_differ_and_share_their_prompt(tiny: Any) -> None:
    client, _ = tiny
    body = _ask("Tell me " * 20, n=4, max_tokens=12, temperature=1.5, ignore_eos=True)
    answer = (await client.post("/v1/chat/completions", json=body)).json()
    texts = {c["message"]["content"] for c in answer["choices"]}
    assert len(answer["choices"]) == 4
    assert len(texts) > 1
    assert answer["usage"]["completion_tokens"] == 48
    chunks = await _chunks(client, body)
    assert {c["choices"][0]["index"] for c in chunks} == {0, 1, 2, 3}


async def test_turns_of_a_program_go_on_where_it_was(tiny: Any) -> None:
    client, server = tiny
    messages = [{"role": "user", "content": "Hello there, who are you? " * 5}]
    cached = []
    for _ in range(3):
        body = {"messages": messages, "max_tokens": 9, "temperature": 0, "program_id": "mine"}
        answer = (await client.post("/v1/chat/completions", json=body)).json()
        assert answer["program_id"] == "mine"
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        messages.append(answer["choices"][0]["message"])
        messages.append({"role": "user", "content": "And then?"})
    assert cached[0] < cached[1] < cached[2]
    assert len(server.sessions) == 1
    released = await client.post("/programs/release", json={"program_id": "mine"})
    assert released.json() == {"program_id": "mine", "released": True}
    assert (await client.delete("/v1/programs/mine")).status_code == 404
    await server.dispatcher.settle()
    assert (await server.dispatcher.engine.stats()).cache.conversations == 0


async def test_a_nameless_client_is_known_by_what_it_sends(tiny: Any) -> None:
    client, server = tiny
    messages = [{"role": "user", "content": "Hello there, who are you? " * 5}]
    first = (await client.post("/v1/chat/completions", json={"messages": messages})).json()
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    second = (await client.post("/v1/chat/completions", json={"messages": messages})).json()
    other = (await client.post("/v1/chat/completions", json=_ask("Somebody else"))).json()
    assert second["program_id"] == first["program_id"] != other["program_id"]
    hit = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert hit >= first["usage"]["prompt_tokens"]
    known = server.dispatcher.scheduler.state.programs
    assert set(known) == {first["program_id"], other["program_id"]}
    assert known[first["program_id"]].steps == 2
    assert not any(program.running_calls for program in known.values())


@pytest.mark.parametrize("name", ["\0p", "a\nb", "\x85", "x" * 257])
async def test_a_name_with_control_characters_or_too_long_is_refused(tiny: Any, name: str) -> None:
    client, server = tiny
    answer = await client.post("/v1/chat/completions", json=_ask("hello", program_id=name))
    assert answer.status_code == 400 and "256" in answer.text
    assert len(server.sessions) == 0


@given(name=st.text(min_size=1, max_size=20), tenant=st.text(max_size=20))
@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_a_name_of_any_unicode_comes_back_and_ends_its_program(
    plain: Any, name: str, tenant: str
) -> None:
    client, server = plain
    body = _ask("hello", program_id=name, user=tenant)
    answer = await client.post("/v1/chat/completions", json=body)
    if not (is_name(name) and is_name(tenant)):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] in ("program_id", "user")
        return
    assert answer.status_code == 200
    owner = {"x-tenant": header_value(tenant)} if tenant else {}
    again = {**owner, "x-program-id": header_value(name)}
    second = await client.post("/v1/chat/completions", json=_ask("hello"), headers=again)
    assert second.headers["x-program-id"] == answer.headers["x-program-id"]
    assert second.json()["program_id"] == answer.json()["program_id"]
    ended = await client.post("/programs/release", json={"program_id": name}, headers=owner)
    assert ended.status_code == 200, ended.text
    assert len(server.sessions) == 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("%00p", 400),
        ("a%0db", 400),
        ("a%0ab", 404),
        ("x" * 257, 400),
        ("x" * 256, 404),
        ("%ff", 404),
        ("%e9%9b%aa", 404),
        ("a/b", 404),
        ("", 404),
        ("%25", 404),
    ],
)
async def test_a_program_is_ended_by_a_name_only(plain: Any, path: str, status: int) -> None:
    client, server = plain
    server.sessions.runtime_caller("p", "default", None)
    answer = await client.delete(f"/v1/programs/{path}")
    assert answer.status_code == status, answer.text
    assert len(server.sessions) == 1
    for header in ("x-tenant", "x-program-id", "x-session-id"):
        long = await client.post("/v1/chat/completions", json=_ask(), headers={header: "y" * 257})
        assert long.status_code == 400 and long.json()["error"]["param"] == header


async def test_tenants_share_no_program_and_no_kv(tiny: Any) -> None:
    client, server = tiny
    body = _ask("The same words for everybody " * 5, program_id="p", max_tokens=4)
    await client.post("/v1/chat/completions", json=body)
    other = await client.post("/v1/chat/completions", json=body, headers={"x-tenant": "b"})
    assert other.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert len(server.sessions) == 2


async def test_a_client_that_leaves_frees_what_it_held(scripted: Any) -> None:
    client, server = await scripted(lambda prompt: "word " * 2000, pause=0.01)
    async with client.stream(
        "POST", "/v1/chat/completions", json=_ask(stream=True, max_tokens=4000)
    ) as answer:
        async for _ in answer.aiter_lines():
            break
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/v1/chat/completions", json=_ask(max_tokens=4000), timeout=0.3)
    known = server.dispatcher.scheduler.state.programs
    for _ in range(200):
        if server.dispatcher.engine.running == 0 and all(
            p.at_tool_boundary for p in known.values()
        ):
            break
        await asyncio.sleep(0.02)
    assert server.dispatcher.engine.running == 0
    assert all(program.at_tool_boundary for program in known.values())


async def test_a_client_that_leaves_a_later_turn_frees_what_it_held(scripted: Any) -> None:
    client, server = await scripted(lambda prompt: "word " * 2000, pause=0.01)
    first = (await client.post("/v1/chat/completions", json=_ask(max_tokens=4))).json()
    said = first["choices"][0]["message"]
    turn = {"messages": [*_ask()["messages"], said, *_ask("on")["messages"]], "max_tokens": 4000}
    turn["program_id"] = first["program_id"]
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/v1/chat/completions", json=turn, timeout=0.3)
    (program,) = server.dispatcher.scheduler.state.programs.values()
    for _ in range(200):
        if program.at_tool_boundary:
            break
        await asyncio.sleep(0.02)
    assert program.at_tool_boundary and not program.running_steps


async def test_a_client_that_leaves_before_it_reads_anything_frees_what_it_held(
    scripted: Any,
) -> None:
    _, server = await scripted(lambda prompt: "word " * 2000, pause=0.01)
    body = json.dumps(_ask(stream=True, max_tokens=4000)).encode()
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "raw_path": b"/v1/chat/completions",
        "headers": headers,
        "http_version": "1.1",
    }
    sent, began = [{"type": "http.request", "body": body}], asyncio.Event()

    async def receive() -> Any:
        if sent:
            return sent.pop()
        await began.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        began.set()
        await asyncio.Event().wait()  # its socket takes nothing

    await server.app(scope, receive, send)
    assert server.dispatcher.engine.running == 0


async def test_a_program_that_is_released_ends_what_had_not_begun(tiny: Any) -> None:
    _, server = tiny
    programs, caller = server.sessions, Caller(name="p")
    session = programs.begin(caller, TextRequest("hello"))
    session.tokens = [5, 6, 7]
    programs.submit(session, 0, 0)
    assert programs.release(caller)
    with pytest.raises(EngineError, match="released"):
        await anext(programs.generate(session, SamplingParams(max_tokens=2), None))
    other = programs.begin(caller, TextRequest("hello"))
    assert other.conversation.name != session.conversation.name
    programs.finish(session)
    programs.finish(other)
    assert not programs.release(Caller(name="q"))


async def test_a_program_that_is_released_while_its_prompt_is_made_never_begins(tiny: Any) -> None:
    _, server = tiny
    programs, caller = server.sessions, Caller(name="p")
    session = programs.begin(caller, TextRequest("hello"))
    assert programs.release(caller)
    with pytest.raises(EngineError, match="released"):
        programs.submit(session, 0, 0)
    programs.finish(session)
    assert not server.dispatcher.scheduler.state.programs


async def test_silent_programs_hold_up_nobody() -> None:
    """More programs than the cache has room for, none ever released."""
    config = EngineConfig(kv_tokens=512)
    async with (
        Runtime(sandbox="none", engine=config, record=False) as runtime,
        _serving(runtime, name="tiny") as (client, server),
    ):
        for index in range(30):
            body = _ask(f"{index} " + "word " * 40, max_tokens=3, program_id=f"p{index % 10}")
            answer = await client.post("/v1/chat/completions", json=body, timeout=20)
            assert answer.status_code == 200, answer.text
        assert len(server.sessions) == 10
        for index in range(20):
            body = _ask(f"other words {index}", max_tokens=3, program_id="p0")
            await client.post("/v1/chat/completions", json=body)
        (p0,) = [p for p in server.sessions.directory if p.label == "p0"]
        assert len(p0.conversations) <= 8


async def test_sixty_four_streams_at_once(tiny: Any) -> None:
    client, _ = tiny
    bodies = [_ask(f"Count to {i}", max_tokens=16, ignore_eos=True) for i in range(64)]
    answers = await asyncio.gather(*(_chunks(client, b) for b in bodies))
    for chunks in answers:
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_completions_take_text_and_tokens_and_score_their_prompt(tiny: Any) -> None:
    client, _ = tiny
    body = {"prompt": "The red fox", "max_tokens": 5, "temperature": 0}
    text = (await client.post("/v1/completions", json=body)).json()
    assert text["choices"][0]["finish_reason"] in ("stop", "length")
    body |= {"prompt": [5, 6, 7, 8], "echo": True, "logprobs": 2}
    scored = (await client.post("/v1/completions", json=body)).json()["choices"][0]["logprobs"]
    assert scored["token_logprobs"][0] is None
    assert all(p <= 0 for p in scored["token_logprobs"][1:])
    assert len(scored["tokens"]) == len(scored["token_logprobs"]) == len(scored["text_offset"])
    only = {**body, "max_tokens": 0}
    assert (
        len(
            (await client.post("/v1/completions", json=only)).json()["choices"][0]["logprobs"][
                "token_logprobs"
            ]
        )
        == 4
    )
    chunks = await _chunks(client, {"prompt": ["a", "b"], "max_tokens": 3}, "completions")
    assert {c["choices"][0]["index"] for c in chunks} == {0, 1}


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": [{"role": "alien", "content": "x"}]}, 400, "messages.0.role", "Input"),
        (_ask(temperature=-1), 400, "temperature", "between 0 and 2"),
        (_ask(n=99), 400, "n", "between"),
        (_ask(model="gpt-9"), 404, "model", "gpt-9"),
        (_ask("word " * 9000), 400, "messages", "shorten"),
        (_ask(tool_choice="required"), 400, "tool_choice", "tool"),
        (_ask(top_logprobs=3), 400, "top_logprobs", "logprobs"),
        (_ask(response_format={"type": "json_schema"}), 400, "response_format", "missing"),
        (
            _ask(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}),
            400,
            None,
            "grammar",
        ),
    ],
)
async def test_what_makes_no_sense_is_refused_with_words(
    tiny: Any, body: Json, status: int, param: str | None, words: str
) -> None:
    client, server = tiny
    for stream in (False, True):
        answer = await client.post("/v1/chat/completions", json={**body, "stream": stream})
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert words in error["message"]
        assert error["param"] == param
    assert not server.dispatcher.scheduler.state.programs


async def test_bodies_that_are_no_json_or_too_large_are_refused(tiny: Any) -> None:
    client, _ = tiny
    bad = await client.post("/v1/chat/completions", content=b"{")
    assert bad.status_code == 400
    large = await client.post("/v1/chat/completions", content=b"x" * (17 << 20))
    assert large.status_code == 413
    assert (await client.get("/nowhere")).status_code == 404
    assert (await client.get("/v1/chat/completions")).status_code == 405


async def test_metrics_have_our_names_and_those_that_dashboards_know(tiny: Any) -> None:
    client, _ = tiny
    await client.post("/v1/chat/completions", json=_ask(max_tokens=4))
    page = (await client.get("/metrics")).text
    for name in (
        'vllm:cache_config_info{block_size="16"',
        "vllm:num_requests_running",
        "num_gpu_blocks=",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:num_preemptions_total",
        "vllm:request_success_total",
        "vllm:time_to_first_token_seconds_bucket",
        "drawloom_kv_hit_host_tokens_total",
        "drawloom_kv_recomputed_tokens_total",
        "drawloom_kv_lease_regrets_total",
    ):
        assert name in page, name
    assert (await client.get("/health")).json() == {"status": "ok"}
    models = (await client.get("/v1/models")).json()
    assert [m["id"] for m in models["data"]] == ["tiny"]
    assert (await client.get("/v1/models/tiny")).status_code == 200
    assert (await client.get("/v1/models/large")).status_code == 404


def _told(server: Any) -> list[Any]:
    """What the scheduler is told from now on."""
    told, emit = list[Any](), server.dispatcher.emit

    def both(event: Any) -> None:
        told.append(event)
        emit(event)

    server.dispatcher.emit = both
    return told


async def test_what_begins_as_a_busy_conversation_did_is_a_fork_of_it(tiny: Any) -> None:
    client, server = tiny
    told, programs = _told(server), server.sessions
    trunk: Json = {**_ask("Where is it?", max_tokens=6), "program_id": "p"}
    assert (await client.post("/v1/chat/completions", json=trunk)).status_code == 200
    (program,) = programs.directory
    (conversation,) = program.conversations.values()
    record = conversation.record
    said = record.answers[0].message
    ids = [*record.tokens, *record.answers[0].tokens]
    opened = []
    for way in "abc":
        messages = [*trunk["messages"], said, {"role": "user", "content": way}]
        turn = ChatTurn.read([Message.model_validate(m) for m in messages])
        session = programs.begin(Caller(name="p"), turn)
        made = server.context.prompts.build(turn, [], session.record, session.match)
        session.tokens = made.tokens
        programs.submit(session, made.known, 0)
        opened.append(session)
    assert opened[0].conversation is conversation
    forks = [event for event in told if isinstance(event, Forked)]
    children = [session.conversation.name for session in opened[1:]]
    assert [(f.parent, f.child, f.shared) for f in forks] == [
        (conversation.name, child, len(ids)) for child in children
    ]
    lines = server.dispatcher.scheduler.state.programs[program.id].conversations
    for session in opened:
        assert session.tokens[: len(ids)] == ids
        params = SamplingParams(max_tokens=2)
        async for _ in programs.generate(session, params, None):
            if session.conversation is not conversation:
                assert (
                    lines[session.conversation.name].private_tokens
                    < len(session.tokens) - len(ids) + 4
                )
    for session in opened:
        programs.finish(session)


async def test_programs_without_a_name_do_not_fork_off_each_other(tiny: Any) -> None:
    client, server = tiny
    told = _told(server)
    posts = [client.post("/v1/chat/completions", json=_ask("same", max_tokens=4)) for _ in range(3)]
    await asyncio.gather(*posts)
    assert not any(isinstance(event, Forked) for event in told)
