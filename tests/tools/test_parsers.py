"""Tool calls out of text cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.errors import ConfigError
from drawloom.tools.calls import new_call_id
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
    read_call,
)

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
    "pythonic": """[shell(command="cat a, )'"), """
    """shell(command='cat a', n=[1, {"a": true}], x=None)]""",
    "mistral": '[TOOL_CALLS] [{"name": "shell", "arguments": {"command": "]{"}}, '
    '{"name": "shell", "arguments": {"command": "b"}}]',
    "mistral-v11": '[TOOL_CALLS]shell{"command": "a}"}[TOOL_CALLS]shell[ARGS]{"command": "b"}',
}


def _say(name: str, parts: list[str], reasoning: bool = False) -> list[Piece]:
    parser = make_parser(name.removesuffix("-v11"), "id", reasoning=reasoning)
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


@pytest.mark.parametrize("name", SPOKEN)
@given(
    data=st.data(),
    text=st.text(alphabet="<tool_cal>/{}\":,[]()=;name TOLCARGS\\'|\n1", max_size=60),
)
def test_whatever_is_said_is_read_the_same_however_it_is_cut(
    name: str, data: st.DataObject, text: str
) -> None:
    whole = data.draw(st.sampled_from(["", SPOKEN[name], SPOKEN[name][:-3]])) + text
    reasoning = data.draw(st.booleans())
    wanted = _merged(_say(name, [whole], reasoning))
    assert _merged(_say(name, _cut(data, whole), reasoning)) == wanted


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


def test_a_template_tells_its_format() -> None:
    assert detect("… [TOOL_CALLS] …") == "mistral"
    assert detect("… <tool_call> …") == "hermes"
    assert detect("… <|python_tag|> …") == "llama3_json"
    with pytest.raises(ConfigError, match="hermes, llama3_json"):
        make_parser("morse")
