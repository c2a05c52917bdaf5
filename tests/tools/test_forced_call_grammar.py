"""Grammars of forced calls: they hold what the tool's own JSON schema holds, and nothing else."""

import json
from typing import Any

import pytest

from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import ConfigError
from drawloom.runtime.dispatch.backends import tiny_model
from drawloom.tools.forced_call_grammar import call_grammar
from drawloom.tools.parsers import Closed, make_parser

NODE = {
    "type": "object",
    "properties": {
        "v": {"enum": ["a"]},
        "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
    },
    "required": ["v", "next"],
    "additionalProperties": False,
}
LEAF = {
    "type": "object",
    "properties": {"k": {"const": 1}},
    "required": ["k"],
    "additionalProperties": False,
}
CASES: list[tuple[str, dict[str, Any] | None, list[Any], list[Any]]] = [
    ("none", None, [{}], [{"a": 1}]),
    ("empty", {}, [{}], [{"a": 1}]),
    (
        "reference",
        {
            "type": "object",
            "properties": {"n": {"$ref": "#/$defs/Node"}},
            "required": ["n"],
            "additionalProperties": False,
            "$defs": {"Node": NODE},
        },
        [{"n": {"v": "a", "next": {"v": "a", "next": None}}}],
        [{"n": {"v": "b"}}, {}],
    ),
    (
        "reference at the root",
        {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
        [{"v": "a", "next": None}],
        [{"v": "b"}, []],
    ),
    (
        "reference to itself",
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
        [{}, {"a": {"a": {}}}],
        [{"b": {}}],
    ),
    (
        "draft 7 definitions",
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/definitions/Leaf"}},
            "required": ["a"],
            "definitions": {"Leaf": LEAF},
        },
        [{"a": {"k": 1}}],
        [{"a": {"k": 2}}],
    ),
    (
        "anyOf",
        {
            "anyOf": [{"$ref": "#/$defs/Leaf"}, {"$ref": "#/$defs/Node"}],
            "$defs": {"Leaf": LEAF, "Node": NODE},
        },
        [{"k": 1}, {"v": "a", "next": None}],
        [{"k": 2}, 5],
    ),
    (
        "allOf",
        {"allOf": [{"$ref": "#/$defs/Leaf"}], "$defs": {"Leaf": LEAF}},
        [{"k": 1}],
        [{"k": 2}],
    ),
    (
        "oneOf",
        {
            "type": "object",
            "properties": {"a": {"oneOf": [{"const": 1}, {"const": "x"}]}},
            "required": ["a"],
        },
        [{"a": 1}, {"a": "x"}],
        [{"a": 2}],
    ),
    (
        "oneOf that overlap",
        {
            "type": "object",
            "properties": {
                "a": {"oneOf": [{"type": "object", "properties": {"k": {"type": "string"}}}, LEAF]}
            },
            "required": ["a"],
        },
        [{"a": {"k": "x"}}],
        [{"a": 5}],
    ),
    (
        "what no grammar holds",
        {
            "type": "object",
            "properties": {
                "a": {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}
            },
            "required": ["a"],
        },
        [{"a": [1, 2]}],
        [{"a": ["x"]}],
    ),
    (
        "optional and nullable",
        {
            "type": "object",
            "properties": {"a": {"type": ["string", "null"]}},
            "additionalProperties": False,
        },
        [{}, {"a": None}, {"a": "x"}],
        [{"a": 1}],
    ),
    (
        "a property named $ref",
        {
            "type": "object",
            "properties": {"$ref": {"type": "integer"}},
            "required": ["$ref"],
            "additionalProperties": False,
        },
        [{"$ref": 1}],
        [{"$ref": "#"}],
    ),
]
WRITTEN = {
    "hermes": '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>',
    "llama3_json": '{{"name": "{}", "parameters": {}}}',
    "mistral": '[TOOL_CALLS] [{{"name": "{}", "arguments": {}}}]',
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(tiny_model())


def _accepts(tokenizer: Tokenizer, grammar: str, text: str) -> bool:
    import llguidance

    end = tokenizer.id_of("<|im_end|>")
    table = llguidance.LLTokenizer(tokenizer.source(), eos_token=end)
    matcher = llguidance.LLMatcher(
        table, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0
    )
    assert not matcher.is_error(), matcher.get_error()
    return all(matcher.consume_token(t) for t in tokenizer.encode(text)) and matcher.is_accepting()


def _grammar(tokenizer: Tokenizer, format: str, tools: Any, several: bool = True) -> str:
    return call_grammar(format, tools, several, lambda mark: tokenizer.id_of(mark) is not None)


@pytest.mark.parametrize("format", list(WRITTEN))
@pytest.mark.parametrize(("name", "schema", "good", "bad"), CASES, ids=[c[0] for c in CASES])
def test_a_call_holds_what_the_schema_holds(
    tokenizer: Tokenizer, format: str, name: str, schema: Any, good: list[Any], bad: list[Any]
) -> None:
    other = {"name": "other", "parameters": {"type": "object", "$defs": {"Node": {"const": 0}}}}
    tools = [{"name": "get-it_1", "parameters": schema}, other]
    grammar = _grammar(tokenizer, format, tools)
    for arguments in good:
        text = WRITTEN[format].format("get-it_1", json.dumps(arguments))
        assert _accepts(tokenizer, grammar, text), text
        parser = make_parser(format)
        closed = [p for p in [*parser.feed(text), *parser.end()] if isinstance(p, Closed)]
        assert [(c.call.name, c.call.arguments, c.call.error) for c in closed] == [
            ("get-it_1", arguments, None)
        ]
    for arguments in bad:
        text = WRITTEN[format].format("get-it_1", json.dumps(arguments))
        assert not _accepts(tokenizer, grammar, text), text
    assert not _accepts(tokenizer, grammar, WRITTEN[format].format("gone", "{}"))


def test_one_call_is_one_call(tokenizer: Tokenizer) -> None:
    tools = [{"name": "f"}]
    call = WRITTEN["hermes"].format("f", "{}")
    for several in (True, False):
        grammar = _grammar(tokenizer, "hermes", tools, several)
        assert _accepts(tokenizer, grammar, call)
        assert _accepts(tokenizer, grammar, f"{call}\n{call}") is several


def test_a_strict_schema_that_no_grammar_holds_is_refused(tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tools = [{"name": "f", "parameters": schema, "strict": True}]
    with pytest.raises(AssertionError, match="uniqueItems"):
        _accepts(tokenizer, _grammar(tokenizer, "hermes", tools), "")


def test_a_format_that_cannot_be_forced_says_so(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="pythonic"):
        _grammar(tokenizer, "pythonic", [{"name": "f"}])
