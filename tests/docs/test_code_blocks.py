"""Code in README and docs/: Python blocks run, and every command line is one that exists."""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drawloom.runtime.cli.main import app, main

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if "```" in path.read_text() and "results" not in path.parts
)
TUTORIAL = ROOT / "docs/tutorial.md"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
_URL = re.compile(r"http://[\d.]+:\d+")
_SERVED = "http://127.0.0.1:8000"


def _blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Return the title and text of each block of a page in one of the languages."""
    found = _BLOCK.findall(page.read_text())
    return [(title, text) for language, title, text in found if language in languages]


def _commands(page: Path) -> list[list[str]]:
    """Return the words of each command line of a page, without comments and variables."""
    found = []
    for _, text in _blocks(page, "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                words = shlex.split(command.replace("…", "x"), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    found.append(words)
    return found


def _python_blocks() -> Iterator[object]:
    for page in PAGES:
        for number, (title, text) in enumerate(_blocks(page, "python")):
            if page != TUTORIAL or not title:  # the tutorial's files are run in its order
                name = f"{page.relative_to(ROOT)}-{number}"
                yield pytest.param(text, id=name)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Serve the model in the box and yield the server's URL."""
    words = [sys.executable, "-m", "drawloom", "serve", "--port", "0", "--kv-tokens", "4096"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        yield next(found.group() for line in lines if (found := _URL.search(line)))
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder that modules are imported from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["drawloom", *words])
    return main()


@pytest.mark.parametrize("text", list(_python_blocks()))
def test_python_blocks_run(text: str, folder: Path, request: pytest.FixtureRequest) -> None:
    if "from agent import" in text:  # they go on from the tutorial's first file
        (folder / "agent.py").write_text(dict(_blocks(TUTORIAL, "python"))["agent.py"])
    if _SERVED in text:
        text = text.replace(_SERVED, request.getfixturevalue("server"))
    (folder / "block.py").write_text(text)
    runpy.run_path(str(folder / "block.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in _commands(page):
        if words[0].endswith("drawloom"):
            line = [re.sub(r"<[^>]*>", "x", word) for word in words[1:]]
            app.parse_args(line, exit_on_error=False, print_error=False)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words


def test_a_command_line_that_does_not_exist_is_found() -> None:
    for words in (["no-such-verb"], ["serve", "--no-such-option", "1"], ["bench", "no-such-bench"]):
        with pytest.raises(Exception, match=r"(?i)unknown|unrecognized|unused|command"):
            app.parse_args(words, exit_on_error=False, print_error=False)


def test_the_tutorial_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in _blocks(TUTORIAL, "python"):
        if name:
            (folder / name).write_text(text)
    monkeypatch.setattr("drawloom.runtime.cli.options.STORE", "sqlite:///programs.db")
    store = ["--store", "sqlite:///programs.db"]
    ran = []
    for words in _commands(TUTORIAL):
        if words[:2] == ["drawloom", "run"] and "--store" not in words:
            assert _run(monkeypatch, *words[1:], *store) == 0
            ran.append(capsys.readouterr().out)
        elif words == ["drawloom", "ps"]:
            assert _run(monkeypatch, "ps", "--json", *store) == 0
            program = re.search(r"prog-\w+", capsys.readouterr().out)
            assert program
            assert _run(monkeypatch, "trace", program.group(), *store) == 0
            assert "shell" in capsys.readouterr().out
        elif words[0] == "python":
            runpy.run_path(str(folder / words[1]))
            ran.append(capsys.readouterr().out)
    solved, many, guessed = ran
    assert solved.strip().endswith("442")
    assert many.strip() == str(["442"] * 4)
    assert guessed.strip()
