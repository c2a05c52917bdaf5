"""Answers of a random model match their grammar."""

import json
import re
from typing import Any

import pytest

from drawloom.engine.api.engine import GenerateRequest, Grammar
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.errors import ConfigError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["read", "write"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}


def _say(
    core: Any, grammar: Grammar, seed: int, tokens: int = 60, **options: Any
) -> tuple[str, FinishReason]:
    params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=seed, **options)
    core.submit(GenerateRequest(f"r{seed}", f"r{seed}", (5, 6, 7), params, grammar=grammar))
    text, finish = "", None
    while core.busy:
        for delta in core.step():
            text += delta.text
            finish = delta.finish or finish
    assert finish is not None
    return text, finish


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_fits_its_json_schema(llama: Any, seed: int) -> None:
    text, finish = _say(llama.engine(), Grammar("json_schema", json.dumps(SCHEMA)), seed)
    data = json.loads(text)
    assert data["name"] in ("read", "write")
    assert 0 <= data["count"] <= 99
    assert finish is FinishReason.STOP


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_fits_its_expression(llama: Any, seed: int) -> None:
    text, _ = _say(llama.engine(), Grammar("regex", "[ab]{3}-[0-9]+x"), seed, 200)
    assert re.fullmatch("[ab]{3}-[0-9]+x", text)


def test_an_answer_is_one_of_the_choices(llama: Any) -> None:
    core = llama.engine()
    words = {_say(core, Grammar("choice", '["yes", "no", "it depends"]'), s)[0] for s in range(12)}
    assert words <= {"yes", "no", "it depends"}
    assert len(words) > 1


@pytest.mark.parametrize("count", [2_001, 20_000])
def test_a_choice_may_have_many_words(llama: Any, count: int) -> None:
    words = [f"c{i * 7919}" for i in range(count)] + ['say "no"', "日\n"]
    core = llama.engine()
    for seed in range(2):
        text, finish = _say(core, Grammar("choice", json.dumps(words)), seed)
        assert text in words
        assert finish is FinishReason.STOP


def test_a_grammar_that_the_library_gives_up_is_an_error_and_no_answer(llama: Any) -> None:
    core = llama.engine()
    words = " | ".join(json.dumps(f"c{i * 7919}") for i in range(3_000))  # rules, not a lexeme
    core.submit(GenerateRequest("bad", "bad", (5,), grammar=Grammar("lark", f"start: {words}")))
    core.submit(GenerateRequest("good", "good", (5,), grammar=Grammar("regex", "[ab]{9}")))
    ends = {}
    while core.busy:
        for delta in core.step():
            if delta.finish is not None:
                ends[delta.request] = (delta.finish, delta.error)
    assert ends["bad"][0] is FinishReason.ERROR
    assert isinstance(ends["bad"][1], ConfigError)
    assert re.search("lark grammar was given up.*make it simpler", str(ends["bad"][1]))
    assert ends["good"] == (FinishReason.STOP, None)


def test_a_grammar_can_begin_behind_the_thinking(llama: Any) -> None:
    core = llama.engine()
    grammar = Grammar("choice", '["yes", "no"]', after="x")
    likely = ((core.tokenizer.encode("x")[0], 5.0),)
    text, _ = _say(core, grammar, 3, 400, logit_bias=likely)
    thought, mark, answer = text.partition("x")
    assert thought
    assert mark
    assert answer in ("yes", "no")


def test_a_resumed_request_goes_on_in_its_grammar(llama: Any) -> None:
    core = llama.engine()
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    params = SamplingParams(max_tokens=60, temperature=1.0)
    core.submit(GenerateRequest("a", "x", (5, 6), params, grammar=grammar))
    said: list[int] = []
    while core.busy:
        said += [t for d in core.step() for t in d.tokens]
    core.submit(
        GenerateRequest("b", "x", (5, 6, *said[:7]), params, grammar=grammar, resumed_tokens=7)
    )
    rest: list[int] = []
    while core.busy:
        rest += [t for d in core.step() for t in d.tokens]
    assert said[:7] + rest == said


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", '{"type": "nonsense"}'),
        ("json_schema", "{"),
        ("regex", "(unclosed"),
        ("lark", "start: undefined"),
        ("choice", "{}"),
        ("choice", "["),
    ],
)
def test_a_grammar_that_does_not_compile_is_refused_with_words(
    llama: Any, kind: str, text: str
) -> None:
    core = llama.engine()
    with pytest.raises(ConfigError, match=kind):
        core.submit(GenerateRequest("a", "a", (5,), grammar=Grammar(kind, text)))
    assert not core.busy


def test_an_unknown_kind_of_grammar_is_refused() -> None:
    with pytest.raises(ConfigError, match="json_schema"):
        Grammar("xml", "")
