"""What is alike among tool calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.tools.calls import ToolCall


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
