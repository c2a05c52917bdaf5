"""What is alike among tool calls."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.tools.parsers import Closed, make_parser
from drawloom.tools.tool_call import ToolCall, new_call_id


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ls -la", "shell:ls"),
        ("python3 -m pytest -x", "shell:python3"),
        ("cd /repo && pytest tests", "shell:pytest"),
        ("cd /repo; FOO=1 BAR=2 /usr/bin/make all", "shell:make"),
        ("sudo apt-get update", "shell:apt-get"),
        ("export A=b && cat x", "shell:cat"),
        ("cd /repo", "shell:cd"),
        ("FOO=1", "shell"),
        ("(echo a)", "shell"),
        ("", "shell"),
        ("git", "shell:git"),
        ("echo hi>x", "shell:echo"),
        (["ls"], "shell"),
        (7, "shell"),
    ],
)
def test_a_shell_command_is_known_by_what_it_runs(command: object, kind: str) -> None:
    assert ToolCall("1", "shell", {"command": command}).kind == kind


def test_another_tool_is_known_by_its_name() -> None:
    assert ToolCall("1", "read", {"path": "pytest"}).kind == "read"


@given(st.text(max_size=80))
def test_no_command_makes_a_strange_kind(command: str) -> None:
    name, _, word = ToolCall("1", "shell", {"cmd": command}).kind.partition(":")
    assert name == "shell"
    assert len(word) <= 24
    assert "+" not in word
    assert ":" not in word


@given(st.text(), st.integers(0, 1000))
def test_an_id_is_what_the_strictest_template_takes(turn: str, index: int) -> None:
    assert re.fullmatch("[a-zA-Z0-9]{9}", new_call_id(turn, index))
    assert new_call_id(turn, index) == new_call_id(turn, index)


def test_ids_of_other_turns_and_other_calls_differ() -> None:
    ids = {
        new_call_id(f"{turn}#{n}", index)
        for turn in range(20)
        for n in range(20)
        for index in range(20)
    }
    assert len(ids) == 20**3


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call>'),
        ("llama3_json", '{"name": "f", "parameters": {}}'),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}]'),
        ("pythonic", "[f()]"),
    ],
)
def test_every_parser_makes_such_ids(parser: str, text: str) -> None:
    made = make_parser(parser, "http-1/0")
    closed = [p for p in [*made.feed(text), *made.end()] if isinstance(p, Closed)]
    assert [c.call.id for c in closed] == [new_call_id("http-1/0", 0)]
