"""Every command's options: help for each, bounds kept, mistakes told in one line."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from cyclopts import App
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from drawloom.errors import ConfigError
from drawloom.runtime.agent import Agent
from drawloom.runtime.cli import main as cli
from drawloom.runtime.cli.main import app
from drawloom.runtime.cli.programs import read_arguments


def _commands(parent: App, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    for name in parent:
        if not name.startswith("-"):
            command = parent[name]
            yield (*words, name), command
            yield from _commands(command, (*words, name))


COMMANDS = dict(_commands(app))


def test_every_command_is_found() -> None:
    assert {("serve",), ("run",), ("bench", "engine"), ("sandbox", "host")} <= COMMANDS.keys()


@pytest.mark.parametrize("words", [w for w, c in COMMANDS.items() if c.default_command])
def test_every_option_has_help(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help, words
    for argument in command.assemble_argument_collection(parse_docstring=True):
        assert argument.parameter.help, f"{' '.join(words)} {argument.name}"


def test_angle_brackets_survive_in_help() -> None:
    out = io.StringIO()
    app.help_print(["serve"], console=Console(file=out, width=200))
    assert "</think>" in out.getvalue()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["serve", "--prot", "1"], "--port"),
        (["srve"], '"serve"'),
        (["bench", "engin"], '"engine"'),
        (["sim", "--seeds", "x"], "--seeds"),
        (["sim", "--seeds", "0"], ">= 1"),
        (["sim", "--pressure", "-1"], ">= 0"),
        (["demo", "--programs", "0"], ">= 1"),
        (["demo", "--rounds", "0"], ">= 1"),
        (["serve", "--drain", "-1"], ">= 0"),
        (["serve", "--kv-tokens", "-5"], ">= 0"),
        (["serve", "--port", "many"], "--port"),
        (["ps", "--limit", "0"], ">= 1"),
        (["trace"], "--program"),
        (["serve", "--port", "99999"], "65535"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    line: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["drawloom", *line])
    assert cli.main() == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.startswith("drawloom: ")
    assert words in printed.err


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (float, "notafloat", "number"),
        (int, "1.5", "integer"),
        (bool, "perhaps", "boolean"),
        (list[int], "[1, x]", "list"),
        (list[int], '[1, "x"]', "integer"),
        (dict[str, int], "nothing", "dictionary"),
    ],
)
def test_an_agent_s_argument_of_the_wrong_type_is_named_with_the_type(
    kind: Any, value: str, words: str
) -> None:
    async def fn(value: Any) -> None: ...

    fn.__annotations__["value"] = kind
    with pytest.raises(ConfigError, match=f"--value .*{words}") as caught:
        read_arguments(Agent(fn), ["--value", value])
    assert "JSON" not in str(caught.value)


@given(st.lists(st.integers()), st.floats(allow_nan=False), st.text(min_size=1))
def test_an_agent_s_arguments_are_read_as_declared(
    numbers: list[int], number: float, text: str
) -> None:
    async def fn(numbers: list[int], number: float, text: str) -> None: ...

    words = [f"--numbers={numbers}", "--number", repr(number), f"--text={text}"]
    assert read_arguments(Agent(fn), words) == {"numbers": numbers, "number": number, "text": text}
