"""A streamed answer, reassembled by the official SDK, equals the whole answer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from drawloom.engine.api.engine import Delta, RequestUsage
from drawloom.engine.sequence import FinishReason
from drawloom.runtime.server.answer import Answer, PlainParser
from drawloom.runtime.server.openai_encoding import (
    JsonObject,
    chat_choice,
    chat_chunk_choices,
    message,
)
from drawloom.tools.parsers import PARSERS, Parser, ReasoningParser, make_parser

ABOUT = {"id": "chatcmpl-1", "created": 1, "model": "m"}
FRAGMENTS = [
    "\n",
    " ",
    "\n\n",
    "Let me see.",
    "Grüße 🎈",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    '"',
    ";",
    ",",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    '{"name": "get", "arguments": {"city": "Rome", "n": 1.50}}',
    '{"arguments": {"city": "Rome"}, "name": "get"}',
    '{"name": "get", "name": "put", "arguments": {}}',
    '{"name": "get", "parameters": {"city": "Rome"}}',
    '{"name": "get", "arguments": {"city": ',
    '{"name": "", "arguments": {}}',
    '{"name": 3}',
    '{"name": "g\\u0065t", "arguments": "{}"}',
    '<tool_call>\n{"name": "get", "arguments": {"city": "</tool_call>"}}\n</tool_call>',
    '<tool_call>\n{"name": "get", "arguments": {"city": "Oslo"}}\n</tool_call>',
    "get",
    "get{}",
    'get[ARGS]{"city": "Rome"}',
    "get(city='Rome')",
    "[get(city='Rome'), put()]",
]


def _parser(name: str, reasoning: bool) -> Parser:
    parser = PlainParser() if name == "none" else make_parser(name, "t")
    return ReasoningParser(parser) if reasoning else parser


def _answer(name: str, reasoning: bool, logprobs: bool, several: bool = True) -> Answer:
    parser, text = _parser(name, reasoning), str if logprobs else None
    return Answer(0, "t", parser, calls=name != "none", several=several, token_text=text)


def _chunks(answer: Answer, deltas: list[Delta]) -> list[JsonObject]:
    return [choice for d in deltas for choice in chat_chunk_choices(0, answer.feed(d))]


def _deltas(parts: list[str], finish: FinishReason) -> list[Delta]:
    usage = RequestUsage(
        3, 0, len(parts), preemptions=0, submitted=0.0, started=0.0, first=0.0, finished=0.0
    )
    deltas = [Delta("r", (at,), part, (-0.5,)) for at, part in enumerate(parts)]
    return [*deltas, Delta("r", (99,), "", (-0.1,), finish, usage)]


def _by_sdk(chunks: list[JsonObject]) -> JsonObject:
    state = ChatCompletionStreamState()
    for chunk in chunks:
        about = ABOUT | {"object": "chat.completion.chunk", "choices": [chunk]}
        state.handle_chunk(ChatCompletionChunk.model_validate(about))
    return state.current_completion_snapshot.choices[0].model_dump()


def _plain(choice: JsonObject) -> JsonObject:
    """Return the fields that a client reads, without what the SDK adds for parsing."""
    message, logprobs = choice["message"], choice["logprobs"]
    calls = message.get("tool_calls") or []
    return {
        "content": message["content"],
        "thought": message.get("reasoning_content"),
        "calls": [
            (c["id"], c["type"], c["function"]["name"], c["function"]["arguments"]) for c in calls
        ],
        "finish": choice["finish_reason"],
        "logprobs": logprobs and [(e["token"], e["logprob"]) for e in logprobs["content"]],
    }


@given(
    name=st.sampled_from([*PARSERS, "none"]),
    reasoning=st.booleans(),
    logprobs=st.booleans(),
    several=st.booleans(),
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join),
    finish=st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
    data=st.data(),
)
def test_a_stream_adds_up_to_the_whole_for_every_parser_and_cut(
    name: str,
    reasoning: bool,
    logprobs: bool,
    several: bool,
    text: str,
    finish: FinishReason,
    data: Any,
) -> None:
    text = text[: data.draw(st.integers(0, len(text)), "end")]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12), "cuts"))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    answer = _answer(name, reasoning, logprobs, several)
    chunks = _chunks(answer, _deltas(parts, finish))
    whole = chat_choice(answer)
    about = ABOUT | {"object": "chat.completion", "choices": [whole]}
    read = ChatCompletion.model_validate(about).choices[0].model_dump()
    assert _plain(_by_sdk(chunks)) == _plain(read) == _plain(whole)
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", ())]
    first = {call["index"]: call for call in reversed(calls)}
    assert all(call["id"] and "name" in call["function"] for call in first.values())
    assert sum("name" in call["function"] for call in calls) == len(first)
    if whole["message"].get("tool_calls"):
        content = whole["message"]["content"]
        assert content is None or content.rstrip() == content != ""
    assert several or len(whole["message"].get("tool_calls", ())) <= 1
    if logprobs:
        assert len(whole["logprobs"]["content"]) == len(parts) + 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '{0}<tool_call>{{"arguments": {{}}, "name": "f"}}</tool_call>{0}'),
        ("mistral", '{0}[TOOL_CALLS] [{{"name": "f", "arguments": {{}}}}]{0}'),
        ("llama3_json", '{0}{{"name": "f", "parameters": {{}}}}{0}'),
        ("pythonic", "{0}[f()]{0}"),
    ],
)
def test_white_space_around_calls_is_no_content(name: str, text: str) -> None:
    answer = _answer(name, False, False)
    chunks = _chunks(answer, _deltas(list(text.format("\n")), FinishReason.STOP))
    assert message(answer)["content"] is None
    assert [c["function"]["name"] for c in message(answer)["tool_calls"]] == ["f"]
    assert not any(chunk["delta"].get("content") for chunk in chunks)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_of_one_call_that_may_be_made_nothing_follows(size: int) -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    answer, text = _answer("hermes", False, False, several=False), f"So:\n{call}\n{call}\nEnd."
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    for delta in _deltas(parts, FinishReason.STOP):
        answer.feed(delta)
    assert answer.call_done
    assert message(answer)["content"] == "So:"
    assert len(message(answer)["tool_calls"]) == 1
    assert answer.text == f"So:\n{call}"


def test_a_name_that_was_streamed_stays() -> None:
    answer = _answer("hermes", False, False)
    text = '<tool_call>{"name": "a", "name": "b", "arguments": {}}</tool_call>'
    chunks = _chunks(answer, _deltas([text], FinishReason.STOP))
    assert _by_sdk(chunks)["message"]["tool_calls"][0]["function"]["name"] == "a"
    assert message(answer)["tool_calls"][0]["function"]["name"] == "a"


def test_an_answer_of_thought_alone_has_empty_content() -> None:
    answer = _answer("hermes", True, False)
    chunks = _chunks(answer, _deltas(["<think>", "hm"], FinishReason.LENGTH))
    assert chunks[0]["delta"] == {"role": "assistant", "content": None}
    assert message(answer) == {"role": "assistant", "content": "", "reasoning_content": "hm"}
