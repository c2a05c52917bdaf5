"""Tool calls out of text cut anywhere."""

from hypothesis import given
from hypothesis import strategies as st

from drawloom.tools.parsers import Closed, HermesParser, Named, Piece, Text, read_call

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
    assert [c.id for c in calls] == ["id-0", "id-1"]


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
