"""Hostile request bodies: valid ones that were changed in a few places, as values or as bytes."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

_SCHEMA = {
    "type": "object",
    "properties": {"n": {"$ref": "#/$defs/N"}, "s": {"type": "string", "pattern": "^a+$"}},
    "required": ["n"],
    "$defs": {"N": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/N"}, {"type": "null"}]}},
}
_TOOLS = [
    {
        "type": "function",
        "function": {"name": "get", "description": "d", "parameters": _SCHEMA, "strict": False},
    },
    {"type": "function", "function": {"name": "put"}},
]
_TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "r",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "get", "arguments": '{"n": 1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "a", "name": "get", "content": "1"},
    {"role": "user", "content": "and?"},
]
_COMMON = {
    "model": None,
    "stream": False,
    "stream_options": None,
    "max_tokens": 2,
    "temperature": 1,
    "top_p": 0.9,
    "top_k": 5,
    "n": 1,
    "seed": 1,
    "stop": ["zz"],
    "stop_token_ids": [7],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1},
    "ignore_eos": False,
    "user": "u",
    "priority": 0,
    "metadata": {"program_id": None},
    "prompt_cache_key": None,
    "session_id": None,
}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": _TURNS[:2], **_COMMON}),
    (
        "/v1/chat/completions",
        {
            "messages": _TURNS,
            "tools": _TOOLS,
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            **_COMMON,
        },
    ),
    (
        "/v1/chat/completions",
        {"messages": _TURNS[-1:], "tools": _TOOLS, "tool_choice": "required", "max_tokens": 2},
    ),
    (
        "/v1/chat/completions",
        {
            "messages": _TURNS[-1:],
            "tools": _TOOLS,
            "max_tokens": 2,
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [_TOOLS[1]]},
            },
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": _TURNS[-1:],
            "logprobs": True,
            "top_logprobs": 2,
            "max_completion_tokens": 2,
            "program_id": "p",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": _SCHEMA},
            },
        },
    ),
    ("/v1/completions", {"prompt": "hello", "echo": True, "logprobs": 2, **_COMMON}),
    ("/v1/completions", {"prompt": [[5, 6], [7]], **_COMMON}),
    ("/programs/release", {"program_id": "p"}),
]
_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    16,
    17,
    767,
    768,
    10**6,
    2**31,
    2**32,
    2**63,
    -(2**63) - 1,
    2**64,
    2**70,
    10**400,
    -(10**400),
    0.5,
    -0.5,
    1e-320,
    1e308,
    "",
    "x",
    "1",
    "5",
    "none",
    "required",
    "\0",
    "a\r\nb: c",
    "\x7f",
    "é",
    "雪",
    "😀",
    "\u2028",
    "\ufeff",
    "a b",
    "a:b",
    "../..",
    "%00",
    "%",
    "<|im_start|>system",
    "<tool_call>",
    "[TOOL_CALLS]",
    "x" * 300,
    "y" * 20_000,
    [],
    {},
    [None],
    [[]],
    [{}],
    {"": None},
    {"type": {}},
    {"type": "image_url"},
    {"$ref": "#"},
    {"$ref": "#/nowhere"},
    {"$ref": "http://127.0.0.1:1/x"},
    {"type": "objekt"},
    {"enum": []},
    {"pattern": "("},
    {"type": "integer", "minimum": 5, "maximum": 3},
    '{"a": NaN}',
    '{"a": "\\ud800"}',
    '{"a":' * 3000,
    "[" * 3000 + "]" * 3000,
    "1" * 5000,
    "{bad",
    ["a"] * 100,
    [5] * 100,
    {str(i): 1 for i in range(100)},
]
_CUTS = (b"\xff", b"\x00", b"\\ud800", b"NaN", b"1e999", b"-Infinity", b"\xed\xa0\x80", b'"', b"[")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with a key or an index of it."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _change(rng: random.Random, body: dict[str, Any]) -> None:
    places = list(_places(body))
    if not places:
        return
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.6:
        holder[key] = copy.deepcopy(rng.choice(_VALUES))
    elif kind < 0.7:
        del holder[key]
    elif kind < 0.8:
        other, at = rng.choice(places)
        holder[key] = copy.deepcopy(other[at])
    elif kind < 0.9:
        holder[key] = [copy.deepcopy(holder[key])] * rng.choice((1, 2, 50))
    elif isinstance(holder, dict):
        holder[str(rng.choice(_VALUES))[:40]] = holder[key]


def hostile(rng: random.Random) -> tuple[str, bytes]:
    """Return a path and a body that nobody should send."""
    path, valid = rng.choice(BODIES)
    body = copy.deepcopy(valid)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        _change(rng, body)
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(_CUTS) + text[at + rng.choice((0, 1, 5, len(text))) :]
    return path, text


_KEYS = st.text(max_size=5) | st.sampled_from(
    "type text function name arguments parameters strict id role content json_schema schema "
    "tool_calls allowed_tools mode tools program_id include_usage 5 $ref".split()
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(max_size=9)
    | st.integers()
    | st.sampled_from([2**63, -(2**63), 2**64, 10**400, -1, 0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """Paths and bodies, some fields of which are any JSON at all."""
    path, valid = draw(st.sampled_from(BODIES))
    body = valid | draw(st.dictionaries(st.sampled_from([*valid, "x"]), _JSON, max_size=3))
    return path, json.dumps(body).encode("utf-8", "surrogatepass")


__all__ = ["BODIES", "hostile", "requests"]
