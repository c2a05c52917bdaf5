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
from drawloom.runtime.cli import main as cli
from drawloom.runtime.cli.main import app
from drawloom.runtime.cli.programs import read_arguments
from drawloom.runtime.execution.agent import Agent


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
        (["serve", "--drain", "-1"], ">= 0"),
        (["serve", "--kv-tokens", "-5"], ">= 0"),
        (["serve", "--port", "many"], "--port"),
        (["ps", "--limit", "0"], ">= 1"),
        (["trace"], "--program"),
        (["serve", "--port", "99999"], "65535"),
        (["serve", "--threads", "-1"], ">= 0"),
        (["serve", "--threads", "99999999999"], "threads=99999999999"),
        (["serve", "--block-size", "0"], ">= 1"),
        (["serve", "--max-sequences", "99999999999"], "max_sequences=99999999999"),
        (["serve", "--weights", "int4"], "int8"),
        (["serve", "--weights", "int8", "--deterministic"], "dense weights"),
        (["serve", "--dtype", "float16"], "bfloat16"),
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


def test_engine_options_are_those_of_the_engine() -> None:
    """Each option of the command line is a field of the engine's, with its default."""
    from drawloom.cores import physical_cores
    from drawloom.engine.config import EngineConfig
    from drawloom.runtime.cli.options import EngineOptions, ServerEngineOptions

    assert EngineOptions().config() == EngineConfig(device="auto")
    server = ServerEngineOptions(weights="int8").config()
    assert server == EngineConfig(device="auto", weights="int8", threads=physical_cores())
    assert EngineOptions(threads=3).config().threads == 3
    given = EngineOptions(
        "cpu",
        "float32",
        "int8",
        threads=2,
        kv_tokens=128,
        host_tokens=64,
        block_size=8,
        max_batch_tokens=32,
        max_sequences=4,
        deterministic=False,
    ).config()
    assert given == EngineConfig(
        "cpu",
        "float32",
        "int8",
        8,
        128,
        host_tokens=64,
        max_batch_tokens=32,
        max_sequences=4,
        threads=2,
    )


@pytest.mark.parametrize("command", ["serve", "run", "resume"])
def test_the_engine_can_be_told_how_to_run(command: str) -> None:
    out = io.StringIO()
    app.help_print([command], console=Console(file=out, width=200))
    for option in ("threads", "weights", "max-batch-tokens", "block-size", "deterministic"):
        assert f"--{option}" in out.getvalue()
