"""Tool calls out of text cut anywhere."""

import ast
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.errors import ConfigError
from drawloom.prompts import Prompt
from drawloom.runtime.store.result_json import encode
from drawloom.tools.parsers import (
    PARSERS,
    Closed,
    HermesParser,
    Named,
    Piece,
    Reasoning,
    Text,
    detect,
    make_parser,
    needs_special,
    opens_thought,
    read_call,
)
from drawloom.tools.tool_call import new_call_id

CALL = '<tool_call>\n{"name": "shell", "arguments": {"command": "cat a"}}\n</tool_call>'


def _feed(pieces: list[str]) -> list[Piece]:
    parser = HermesParser("id")
    out = [piece for text in pieces for piece in parser.feed(text)]
    return out + parser.end()


def _text(pieces: list[Piece]) -> str:
    return "".join(p.text for p in pieces if isinstance(p, Text))


def test_the_name_is_known_before_the_arguments_close() -> None:
    parser = HermesParser()
    parser.feed('<tool_call>\n{"name": "sh')
    assert parser.feed('ell", "arg') == [Named(0, "shell")]
    assert parser.feed('uments": {}}') == []
    (closed,) = parser.feed("</tool_call>")
    assert isinstance(closed, Closed)
    assert closed.call.name == "shell"


def test_parallel_calls_have_their_own_ids() -> None:
    calls = [p.call for p in _feed([CALL + "\n" + CALL]) if isinstance(p, Closed)]
    assert [c.id for c in calls] == [new_call_id("id", 0), new_call_id("id", 1)]


@given(st.data(), st.text(max_size=30).filter(lambda s: "<" not in s))
def test_where_the_text_is_cut_changes_nothing(data: st.DataObject, prose: str) -> None:
    whole = f"{prose}{CALL}{prose}{CALL}"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    cut, uncut = _feed(parts), _feed([whole])
    assert _text(cut) == _text(uncut) == prose * 2
    assert [p for p in cut if not isinstance(p, Text)] == [
        p for p in uncut if not isinstance(p, Text)
    ]


@given(st.text(alphabet='<tool_cal>/{}":,[]name ', max_size=80))
def test_no_text_makes_it_raise(text: str) -> None:
    _feed([text])


def test_malformed_calls_are_calls_with_an_error() -> None:
    bodies = (
        "{",
        "[]",
        '{"name": 3}',
        '{"arguments": {}}',
        '{"name": "a", "arguments": [1]}',
        "[" * 9999,
    )
    for body in bodies:
        assert read_call("x", body).error, body
    assert read_call("x", '{"name": "shell", "arg').name == "shell"


def test_arguments_may_come_as_a_string_of_json() -> None:
    assert read_call("x", '{"name": "a", "arguments": "{\\"b\\": 1}"}').arguments == {"b": 1}


def test_a_call_cut_off_by_the_token_limit_is_reported() -> None:
    (named, closed) = _feed(['<tool_call>{"name": "shell", "arguments": {"comm'])
    assert named == Named(0, "shell")
    assert isinstance(closed, Closed)
    assert "not valid JSON" in str(closed.call.error)


SPOKEN = {
    "hermes": CALL + CALL,
    "llama3_json": '<|python_tag|>{"name": "shell", "parameters": {"command": "cat a; {"}}; '
    '{"name": "shell", "parameters": {"command": "cat a; {"}}',
    "llama3_json-4": '<|python_start|>{"name": "shell", "parameters": {"command": "cat a; {"}}; '
    '{"name": "shell", "parameters": {"command": "\\"}<|python_end|>"}}<|python_end|>',
    "pythonic": """[shell(command="cat a, )'"), """
    """shell(command='cat a', n=[1, {"a": true}], x=None)]""",
    "pythonic-4": '<|python_start|>[shell(command="<|python_end|>)]"), '
    "shell(command=1)]<|python_end|>",
    "mistral": '[TOOL_CALLS] [{"name": "shell", "arguments": {"command": "]{"}}, '
    '{"name": "shell", "arguments": {"command": "b"}}]',
    "mistral-v11": '[TOOL_CALLS]shell{"command": "a}"}[TOOL_CALLS]shell[ARGS]{"command": "b"}',
    "mistral-v13": '[TOOL_CALLS]shell[CALL_ID]abcDEF123[ARGS]{"command": "[TOOL_CALLS]"}'
    '[TOOL_CALLS]shell[CALL_ID]abcDEF124[ARGS]{"command": "}"}',
}


def _say(name: str, parts: list[str], reasoning: bool = False, **options: Any) -> list[Piece]:
    parser = make_parser(name.partition("-")[0], "id", reasoning=reasoning, **options)
    out = [piece for text in parts for piece in parser.feed(text)]
    return out + parser.end()


def _merged(pieces: list[Piece]) -> list[Piece]:
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if isinstance(piece, Text) and isinstance(last, Text):
            out[-1] = Text(last.text + piece.text)
        elif isinstance(piece, Reasoning) and isinstance(last, Reasoning):
            out[-1] = Reasoning(last.text + piece.text)
        else:
            out.append(piece)
    return out


def _cut(data: st.DataObject, whole: str) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@pytest.mark.parametrize("name", SPOKEN)
def test_every_format_is_read_as_it_is_written(name: str) -> None:
    pieces = _say(name, list(SPOKEN[name]))
    assert [type(p) for p in pieces] == [Named, Closed, Named, Closed]
    calls = [p.call for p in pieces if isinstance(p, Closed)]
    assert [c.name for c in calls] == ["shell", "shell"]
    assert [c.error for c in calls] == [None, None]
    assert "command" in calls[1].arguments


def test_pythonic_arguments_are_literals() -> None:
    closed = [p.call for p in _say("pythonic", [SPOKEN["pythonic"]]) if isinstance(p, Closed)]
    assert closed[0].arguments == {"command": "cat a, )'"}
    assert closed[1].arguments == {"command": "cat a", "n": [1, {"a": True}], "x": None}
    for bad in ("[f(x=open('a'))]", "[f(1)]", "[f(**{})]", "[f(x={1})]", "[f(x=)]"):
        (call,) = [p.call for p in _say("pythonic", [bad]) if isinstance(p, Closed)]
        assert call.error is not None


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("before", ["", "<think>\nwell, {hm} [x</think>\n\n"])
@given(data=st.data())
def test_tokens_split_anywhere_change_nothing(name: str, before: str, data: st.DataObject) -> None:
    whole = before + SPOKEN[name]
    wanted = _merged(_say(name, [whole], reasoning=True))
    assert _merged(_say(name, _cut(data, whole), reasoning=True)) == wanted
    if before:
        assert wanted[0] == Reasoning("well, {hm} [x")


_MARKS = (
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "[TOOL_CALLS]",
    "[CALL_ID]",
    "[ARGS]",
    "<|python_tag|>",
    "<|python_start|>",
    "<|python_end|>",
    '{"name": "shell"',
    '{"name": "ada"',
    '"name"',
    '"arguments": ',
    '"parameters": ',
    "shell(",
    "ada(",
    'command="',
    "=",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    '"',
    "'",
    "\\",
    ";",
    ",",
    ":",
    " ",
    "\n",
    "1e999",
    "NaN",
    "\\ud800",
    "\ud800",
    "9" * 5000,
    "x",
    "é",
)
_ANY = st.lists(st.sampled_from(_MARKS) | st.text(max_size=3), max_size=14).map("".join)


@pytest.mark.parametrize("name", SPOKEN)
@given(data=st.data(), text=_ANY)
def test_whatever_is_said_is_read_the_same_however_it_is_cut(
    name: str, data: st.DataObject, text: str
) -> None:
    """And nothing raises, and every call can be stored and sent."""
    whole = data.draw(st.sampled_from(["", SPOKEN[name], SPOKEN[name][:-3]])) + text
    reasoning, inside = data.draw(st.booleans()), data.draw(st.booleans())
    offered = data.draw(st.sampled_from([None, frozenset(), frozenset({"shell"})]))
    options: dict[str, Any] = {"inside": inside, "offered": offered}
    wanted = _merged(_say(name, [whole], reasoning, **options))
    assert _merged(_say(name, _cut(data, whole), reasoning, **options)) == wanted
    closed = [p.call for p in wanted if isinstance(p, Closed)]
    for call in closed:
        json.dumps([call.name, call.arguments], allow_nan=False, ensure_ascii=False).encode()
    named = {p.index: p.name for p in wanted if isinstance(p, Named)}
    assert all(closed[index].name == name for index, name in named.items())


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    "text", ["Hello there.", '{"answer": 42}', "[1, 2, 3]", "a < b", "[see above]"]
)
def test_an_answer_without_calls_is_text(name: str, text: str) -> None:
    assert _merged(_say(name, list(text))) == [Text(text)]


@pytest.mark.parametrize("name", SPOKEN)
def test_a_call_that_breaks_off_is_a_call_with_an_error(name: str) -> None:
    begun = SPOKEN[name].partition("command")[0] + "comm"
    calls = [p.call for p in _say(name, [begun]) if isinstance(p, Closed)]
    assert [c.name for c in calls] == ["shell"]
    assert calls[0].error is not None


_IN_STRINGS = [
    "</tool_call>",
    "<tool_call>",
    "\\\\",
    '\\"',
    '\\\\\\"',
    "}",
    "]",
    "[TOOL_CALLS]",
    ";",
    "'",
]


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral", "pythonic"])
@given(
    data=st.data(), parts=st.lists(st.sampled_from(_IN_STRINGS) | st.text(max_size=2), max_size=6)
)
def test_arguments_hold_any_text(name: str, data: st.DataObject, parts: list[str]) -> None:
    value = "".join(parts).encode("utf-8", "replace").decode()
    body = json.dumps({"name": "shell", "arguments": {"command": value}})
    written = {
        "hermes": f"<tool_call>\n{body}\n</tool_call>",
        "llama3_json": body,
        "mistral": f"[TOOL_CALLS] [{body}]",
        "pythonic": f"[shell(command={json.dumps(value)})]",
    }[name] + ("" if name == "llama3_json" else "\n")
    pieces = _say(name, _cut(data, written), offered={"shell"})
    (call,) = [p.call for p in pieces if isinstance(p, Closed)]
    assert (call.arguments, call.error) == ({"command": value}, None)
    assert not "".join(p.text for p in pieces if isinstance(p, Text)).strip()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama3_json", '{"name": "Ada", "age": 36}'),
        ("llama3_json", '{"name": "Ada", "parameters": {}}'),
        ("pythonic", "[see(above=1)]"),
        ("pythonic", "[f(x) for x in y]"),
    ],
)
@pytest.mark.parametrize("offered", [frozenset(), frozenset({"shell"})])
def test_an_answer_that_names_no_offered_tool_is_text(
    name: str, text: str, offered: frozenset[str]
) -> None:
    assert _merged(_say(name, list(text), offered=offered)) == [Text(text)]


@pytest.mark.parametrize("name", ["hermes", "mistral", "llama3_json-4", "pythonic-4"])
def test_a_marked_call_of_an_unknown_tool_is_a_call(name: str) -> None:
    pieces = _say(name, [SPOKEN[name]], offered=frozenset({"other"}))
    assert [p.call.name for p in pieces if isinstance(p, Closed)] == ["shell", "shell"]


def test_a_string_that_never_ends_does_not_hide_what_follows() -> None:
    whole = '<tool_call>{"name": "shell", "arguments": {"c": "x}}</tool_call>' + CALL
    calls = [p.call for p in _say("hermes", list(whole)) if isinstance(p, Closed)]
    assert [bool(call.error) for call in calls] == [True, False]


@pytest.mark.parametrize(
    "written",
    ['"""say "hi" (now\'\'\'"""', "'''it's \\\"'''", '""', "''", '"a" "b"', '"""\\""""', "'\\''"],
)
@given(data=st.data())
def test_python_s_strings_hold_quotes(written: str, data: st.DataObject) -> None:
    whole = f"[shell(command={written}, n=1)]"
    (call,) = [p.call for p in _say("pythonic", _cut(data, whole)) if isinstance(p, Closed)]
    assert call.arguments == {"command": ast.literal_eval(written), "n": 1}


def test_a_broken_call_keeps_the_name_that_was_told() -> None:
    named, closed = _say("mistral", ['[TOOL_CALLS]é¹{"name": "shell"'])
    assert named == Named(0, "é¹")
    assert isinstance(closed, Closed)
    assert closed.call.name == "é¹"


def test_text_behind_a_mistral_call_is_text() -> None:
    pieces = _merged(_say("mistral", list(SPOKEN["mistral"] + "\nDone.")))
    assert [type(p) for p in pieces] == [Named, Closed, Named, Closed, Text]


@pytest.mark.parametrize("opened", ["<think>", "<think>\n", "<|x|><think>\n\n"])
def test_a_thought_that_the_template_opens_is_known(opened: str) -> None:
    assert opens_thought(Prompt("<|user|>hi" + opened, ((8, 10),)))
    assert not opens_thought(Prompt(opened, ((0, len(opened)),)))
    assert not opens_thought(Prompt(opened + "</think>"))


def test_a_thought_begun_in_the_prompt_ends_at_its_mark() -> None:
    for begun in ("", "<think>\n"):
        pieces = _merged(_say("hermes", list(f"{begun}well</think>\n\n{CALL}"), inside=True))
        assert [type(p) for p in pieces] == [Reasoning, Named, Closed]
        assert pieces[0] == Reasoning("well")
    assert _merged(_say("hermes", ["only a"], inside=True)) == [Reasoning("only a")]


def test_marks_that_are_special_tokens_are_left_in_the_text() -> None:
    assert needs_special("mistral", False, lambda mark: False)
    assert needs_special("hermes", False, {"<tool_call>"}.__contains__)
    assert needs_special("hermes", True, {"</think>"}.__contains__)
    assert not needs_special("hermes", False, {"</think>"}.__contains__)


def test_a_template_tells_its_format() -> None:
    assert detect("… [TOOL_CALLS] …") == "mistral"
    assert detect("… <tool_call> …") == "hermes"
    assert detect("… <|python_tag|> …") == "llama3_json"
    assert detect("… <|python_start|> …") == "pythonic"
    with pytest.raises(ConfigError, match="hermes, llama3_json"):
        make_parser("morse")


@pytest.mark.parametrize("form", ["[", '{"a":'])
def test_arguments_that_are_nested_too_deeply_are_an_error_of_the_call(form: str) -> None:
    for levels, fits in ((60, True), (64, False), (400, False)):
        inner = form * levels + "1" + {"[": "]", '{"a":': "}"}[form] * levels
        call = read_call("c", f'{{"name": "t", "arguments": {{"a": {inner}}}}}')
        assert (call.error is None) == fits
        assert encode(call.arguments) is not None  # a turn with this call can be recorded
