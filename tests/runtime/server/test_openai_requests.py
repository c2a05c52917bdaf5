"""Requests as they come: every value is understood as OpenAI's server would, or refused by name."""

import json
import pickle
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawloom.errors import BudgetExceeded, ConfigError, ContextTooLong, EngineClosed, EngineError
from drawloom.runtime.server.errors import (
    HttpError,
    ProgramReleased,
    context_too_long,
    parse,
    wire_error,
)
from drawloom.runtime.server.names import header_value, is_name
from drawloom.runtime.server.openai_requests import (
    ChatRequest,
    CompletionRequest,
    Message,
    ReleaseRequest,
    Sampling,
)
from drawloom.runtime.server.toolspecs import calls_of
from tests.lanes import examples

from .hostile import BODIES, hostile, requests

USER = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"messages": [USER]}
TOOL = {"type": "function", "function": {"name": "get"}}
SCHEMAS = [(ChatRequest, CHAT), (CompletionRequest, {"prompt": "hi"})]


def _refusal(kind: Any, body: Any) -> HttpError:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(HttpError) as caught:
        parse(kind, text)
    assert caught.value.status == 400
    return caught.value


def _numbers(kind: Any) -> list[tuple[str, dict[str, Any]]]:
    """The fields that are numbers, with their schemas."""
    found = []
    for name, schema in kind.model_json_schema()["properties"].items():
        for option in schema.get("anyOf", [schema]):
            if option.get("type") in ("integer", "number"):
                found.append((name, option))
    return found


NUMBERS = [
    pytest.param(kind, base, name, schema, id=f"{kind.__name__}.{name}")
    for kind, base in SCHEMAS
    for name, schema in _numbers(kind)
]


@pytest.mark.parametrize(("kind", "base", "name", "schema"), NUMBERS)
def test_a_number_has_bounds_and_is_refused_outside_of_them(
    kind: Any, base: dict[str, Any], name: str, schema: dict[str, Any]
) -> None:
    low, high = schema["minimum"], schema["maximum"]
    more: dict[str, Any] = {"logprobs": True} if name == "top_logprobs" else {}
    for inside in (low, high, None):
        more = {"n": inside} if name == "best_of" else more
        parse(kind, json.dumps({**base, **more, name: inside}).encode())
    outside_values: list[Any] = [low - 1, high + 1, 10**400, -(10**400), "1", True, [], {}, 2e300]
    for outside in outside_values:
        error = _refusal(kind, {**base, **more, name: outside})
        assert error.param == name
        assert f"between {low} and {high}" in str(error)


KINDS: dict[str, Any] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/programs/release": ReleaseRequest,
}


def _understand(path: str, body: bytes) -> bool:
    """Do with a body what the server does before the model; whether it was accepted."""
    try:
        asked = parse(KINDS[path], body)
        if isinstance(asked, ChatRequest):
            calls_of(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
            shown = [tool.schema_for_model() for tool in asked.tools or []]
            turns = [message.rendered() for message in asked.messages]
            json.dumps([turns, shown], ensure_ascii=False, indent=4).encode()
            if asked.response_format is not None:
                asked.response_format.grammar()
        if isinstance(asked, Sampling):
            asked.params(100, 768)
    except HttpError as error:
        assert error.status == 400
        json.dumps(error.body, ensure_ascii=False).encode()
        return False
    return True


@pytest.mark.parametrize("seed", range(20))
def test_no_body_does_more_than_be_refused(seed: int) -> None:
    rng = random.Random(seed)
    accepted = [_understand(*hostile(rng)) for _ in range(200)]
    assert {True, False} == set(accepted)


@given(requests())
@settings(max_examples=examples(200))
def test_no_json_does_more_than_be_refused(request: tuple[str, bytes]) -> None:
    _understand(*request)


def test_the_bodies_that_hostile_ones_are_made_of_are_accepted() -> None:
    assert all(_understand(path, json.dumps(body).encode()) for path, body in BODIES)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"5",
        b'"x"',
        b'{"messages": "\xff"}',
        b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}',
        b'{"messages": [{"role": "user", "content": "x"}], "metadata": ' + b'{"a":' * 9999,
    ],
)
def test_what_is_no_json_of_ours_is_refused(body: bytes) -> None:
    _refusal(ChatRequest, body)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "", "content": "x"}]}, "messages.0.role", "user"),
        ({"messages": [{**USER, "content": 5}]}, "messages.0.content", "string"),
        (
            {"messages": [{**USER, "content": [{"type": "image_url"}]}]},
            "messages.0.content",
            "Part 0 is 'image_url': only text is understood",
        ),
        ({"messages": [{**USER, "content": [{"type": "text"}]}]}, "messages.0.content", "a text"),
        ({"stop": ["x"] * 17}, "stop", "16"),
        ({"stop": 5}, "stop", "list"),
        ({"stop": ["x" * 2000]}, "stop.0", "1024"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "between -100 and 100"),
        ({"logit_bias": {"-5": 1}}, "logit_bias.-5", "token id"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0", "0"),
        ({"stop_token_ids": [2**64]}, "stop_token_ids.0", "less"),
        ({"user": "a\r\nb"}, "user", "control"),
        ({"program_id": "x" * 257}, "program_id", "256"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is true"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"functions": [{"name": "f"}]}, "functions", "None"),
        ({"tools": [{"type": "custom"}]}, "tools.0.type", "function"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools.0.function.name",
            "64",
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}
                ]
            },
            "tools.0.function.parameters",
            "object",
        ),
        ({"tool_choice": "always"}, "tool_choice", "required"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "Field required"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ],
)
def test_the_field_that_is_wrong_is_named(change: dict[str, Any], param: str, words: str) -> None:
    error = _refusal(ChatRequest, CHAT | change)
    assert error.param == param
    assert words in str(error)
    assert error.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_null_is_the_default_of_every_optional_field(kind: Any) -> None:
    base = dict(SCHEMAS)[kind]
    plain = parse(kind, json.dumps(base).encode())
    nulls = {name: None for name in kind.model_fields if name not in base}
    asked = parse(kind, json.dumps({**base, **nulls}).encode())
    wanted = plain.params(100, 768)
    assert asked.choices == plain.choices
    if kind is ChatRequest:
        # a seed that is not given is drawn anew
        assert replace(asked.params(100, 768), seed=0) == replace(wanted, seed=0)


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
@pytest.mark.parametrize("id", [768, 10**8])
def test_a_token_id_is_one_of_the_vocabulary(field: str, id: int) -> None:
    value: Any = {str(id): 1} if field == "logit_bias" else [id]
    asked = parse(ChatRequest, json.dumps(CHAT | {field: value}).encode())
    with pytest.raises(HttpError, match=f"{field}: token id .* outside the vocabulary, 0 to 767"):
        asked.params(100, 768)


# --- messages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (None, {}),
        ("{bad", {"": "{bad"}),
        ('{"a": "\\ud800"}', {"": '{"a": "\\ud800"}'}),
        ('{"a":' * 5000 + "1" + "}" * 5000, None),
        ('{"a": ' + "1" * 5000 + "}", None),
    ],
)
def test_arguments_that_no_prompt_can_hold_go_back_as_they_were(
    arguments: Any, rendered: Any
) -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": arguments}}
    message = Message.model_validate({"role": "assistant", "tool_calls": [call]})
    found = message.rendered()["tool_calls"][0]["function"]["arguments"]
    assert found == ({"": arguments} if rendered is None else rendered)
    json.dumps(found, ensure_ascii=False, indent=4).encode()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_thought_goes_to_the_template(field: str) -> None:
    thought = {"role": "assistant", "content": "4", field: "2 + 2"}
    assert Message.model_validate(thought).rendered()["reasoning_content"] == "2 + 2"
    assert "reasoning_content" not in Message.model_validate({**thought, "role": "user"}).rendered()


def test_content_in_parts_is_their_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    for content, text in ((parts, "ab"), ([], ""), (None, ""), ("x", "x")):
        message = Message.model_validate({"role": "assistant", "content": content})
        assert message.rendered()["content"] == text


# --- tools ----------------------------------------------------------------------------------


def _calls(choice: Any, parallel: bool | None = None, names: str = "abc") -> Any:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    body = {**CHAT, "tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel}
    asked = parse(ChatRequest, json.dumps(body).encode())
    calls = calls_of(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
    return "".join(t.function.name for t in calls.tools), calls.required, calls.several


def test_a_tool_choice_says_what_may_be_called() -> None:
    def function(name: str) -> Any:
        return {"type": "function", "function": {"name": name}}

    def allowed(mode: str, *names: str) -> Any:
        tools = [function(name) for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

    assert _calls(None) == _calls("auto") == ("abc", False, True)
    assert _calls("none") == ("", False, True)
    assert _calls("required") == ("abc", True, True)
    assert _calls("required", False) == ("abc", True, False)
    assert _calls("auto", False) == ("abc", False, False)
    assert _calls(function("b")) == ("b", True, False)
    assert _calls(allowed("auto", "a", "c")) == ("ac", False, True)
    assert _calls(allowed("required", "c"), False) == ("c", True, False)
    for missing in (function("z"), allowed("auto", "a", "z")):
        with pytest.raises(HttpError, match="there is no tool 'z'"):
            _calls(missing)
    with pytest.raises(HttpError, match="needs tools"):
        _calls("required", names="")


def test_a_tool_may_leave_everything_but_its_name_out() -> None:
    bare = {"name": "f", "description": None, "parameters": None, "strict": None}
    body = CHAT | {"tools": [{"type": "function", "function": bare}]}
    asked = parse(ChatRequest, json.dumps(body).encode())
    assert asked.tools is not None
    shown = asked.tools[0].schema_for_model()["function"]
    assert shown == {"name": "f", "description": "", "parameters": {}}


def test_a_schema_that_is_not_strict_is_followed_as_far_as_a_grammar_can() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    for strict in (True, False, None):
        about = {"name": "x", "schema": schema, "strict": strict}
        body = CHAT | {"response_format": {"type": "json_schema", "json_schema": about}}
        asked = parse(ChatRequest, json.dumps(body).encode())
        assert asked.response_format is not None
        grammar = asked.response_format.grammar()
        assert grammar is not None
        made = json.loads(grammar.text)
        assert made.pop("x-guidance", None) == (None if strict else {"lenient": True})
        assert made == {**schema, "additionalProperties": False}


# --- names ----------------------------------------------------------------------------------


@given(st.text(max_size=300))
def test_a_name_fits_into_a_header_or_is_none(name: str) -> None:
    if is_name(name):
        value = header_value(name)
        assert value.isascii() and value.isprintable() and value == value.strip()
    else:
        assert len(name) > 256 or not name.isprintable()


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "limit"), [(50, 40), (None, 40), (50, None), (None, None)])
def test_a_context_that_is_too_long_says_so_in_the_words_that_clients_know(
    tokens: int | None, limit: int | None
) -> None:
    error = context_too_long(tokens, limit, "messages")
    # litellm.litellm_core_utils.exception_mapping_utils looks for this, in lower case
    assert "this model's maximum context length is" in str(error).lower()
    assert "However, " in str(error)
    assert error.body["error"]["code"] == "context_length_exceeded"
    assert error.body["error"]["type"] == "invalid_request_error"
    assert error.status == 400


def test_the_engine_s_error_of_a_context_becomes_the_same() -> None:
    error = pickle.loads(pickle.dumps(ContextTooLong("too long", tokens=50, limit=40)))
    assert "maximum context length is 40 tokens. However, your prompt resulted in 50" in str(
        wire_error(error)
    )
    assert str(error) == "too long"


def test_what_a_client_did_wrong_is_no_error_of_the_server() -> None:
    kinds = (ConfigError, BudgetExceeded, ProgramReleased, EngineError, EngineClosed)
    assert [wire_error(kind("x")).status for kind in kinds] == [400, 429, 409, 500, 503]
