"""Code blocks of README and documentation run, or name commands and files that exist."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from drawloom.runtime.bench.scheduling.__main__ import app as bench_app
from drawloom.runtime.cli.main import app
from tests.docs.page_runner import (
    PAGES,
    ROOT,
    PageRunner,
    blocks,
    processes_are_isolated,
    shell_lines,
)

RUN = [page for page in PAGES if blocks(page, "python")]
EXPECTED = {
    "docs/tutorial.md": {
        "python agent.py": "415",
        "drawloom run agent.py:solve": "442",
        "drawloom resume '<id>'": "442",
        "python client.py": "415",
    },
    "docs/howto/resume.md": {"python resumable.py": "415"},
    "docs/howto/mcp.md": {"python with_mcp.py": "415"},
    "docs/howto/sandbox.md": {"drawloom run checks.py:check --sandbox docker": "passed"},
    "README.md": {"drawloom run examples/quickstart.py:solve": "442"},
}
_INLINE = re.compile(r"`((?:drawloom|make|python -m|python|pip install) [^`\n]+)`")
_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
_SHELL = {"export", ".", "cd"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of `drawloom serve`."""
    command = [sys.executable, "-m", "drawloom", "serve", "--port", "0", "--kv-tokens", "8192"]
    folder = tmp_path_factory.mktemp("server")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"http://([\d.]+:\d+)/v1", line):
                break
        assert found, "the server did not start"
        yield found[1]
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture
def runner(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> PageRunner:
    return PageRunner(tmp_path, server, monkeypatch, capfd)


def _needs_docker(page: str) -> bool:
    """Return whether a page's environments can be containers alone."""
    text = "".join(block.text for block in blocks(page, "python", "sh"))
    return "--sandbox docker" in text


@pytest.mark.parametrize("page", [page for page in RUN if not _needs_docker(page)])
def test_what_a_page_shows_runs(
    page: str, runner: PageRunner, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if any("Env(" in block.text or "Env." in block.text for block in blocks(page, "python")):
        if processes_are_isolated():
            monkeypatch.setenv("DOCKER_HOST", f"unix://{runner.folder}/none")
        else:
            _docker(monkeypatch, request)
    _run(page, runner)


@pytest.mark.docker
@pytest.mark.parametrize("page", ["README.md", "docs/howto/sandbox.md"])
def test_what_a_page_shows_runs_in_containers(
    page: str, runner: PageRunner, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    _docker(monkeypatch, request)
    _run(page, runner)


def _docker(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if url := request.getfixturevalue("docker_url"):
        monkeypatch.setenv("DOCKER_HOST", url)


def _run(page: str, runner: PageRunner) -> None:
    runner.run(page)
    said = {line: runner.said.get(line, "did not run") for line in EXPECTED.get(page, {})}
    for line, text in EXPECTED.get(page, {}).items():
        assert text in said[line], line


@pytest.mark.parametrize("page", RUN)
def test_files_that_a_page_writes_are_used(page: str) -> None:
    """Otherwise a block with a title would never run."""
    text = "\n".join(block.text for block in blocks(page))
    for title in {block.title for block in blocks(page, "python")} - {""}:
        assert text.count(title) or f"from {Path(title).stem} import" in text, title


@pytest.mark.parametrize("page", PAGES)
def test_shell_lines_of_a_page_are_possible(page: str) -> None:
    wrong = {" ".join(line): _wrong(line) for line in shell_lines(page)}
    assert not {line: why for line, why in wrong.items() if why}


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_of_a_page_are_possible(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    wrong = {line: _wrong(line.split()) for line in _INLINE.findall(text)}
    assert not {line: why for line, why in wrong.items() if why}


def test_the_readme_shows_the_example() -> None:
    (shown,) = blocks("README.md", "python")
    example = (ROOT / "examples/quickstart.py").read_text()
    assert ast.dump(ast.parse(shown.text)) == ast.dump(_without_docstring(ast.parse(example)))


def test_a_command_that_is_not_there_is_found() -> None:
    for line in (
        "drawloom fly",
        "drawloom run a:b --warp 9",
        "make tea",
        "python none.py",
        "teleport",
        "python -m drawloom.runtime.bench.scheduling none",
        "pip install drawloom[none]",
        "curl none/v2",
        "python -m pytest tests/none.py",
        "drawloom bench unit",
    ):
        assert _wrong(line.split()), line


def _without_docstring(tree: ast.Module) -> ast.Module:
    return ast.Module(tree.body[1:], tree.type_ignores)


def _wrong(words: list[str]) -> str:
    """Return why a command line cannot be right; empty if it can."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    name = words[0].rpartition("/")[2]
    if name in _SHELL or name in ("ruff", "openssl"):
        return ""
    if name == "drawloom":
        return _wrong_verb(app, words[1:])
    if name == "make":
        return next((w for w in words[1:] if "=" not in w and w not in _TARGETS), "")
    if name == "curl":
        return "" if any(_route(word) for word in words) else "no such route"
    if words[:2] == ["pip", "install"]:
        return _wrong_extra(words[2].strip("'\""))
    if name == "python":
        return _wrong_python(words[1:])
    return f"{name} is not known"


def _wrong_python(words: list[str]) -> str:
    if words[0] != "-m":
        ours = any(block.title == words[0] for page in PAGES for block in blocks(page, "python"))
        return "" if ours or (ROOT / words[0]).exists() else words[0]
    if words[1] == "drawloom.runtime.bench.scheduling":
        return _wrong_verb(bench_app, words[2:])
    if words[1] == "pytest":
        paths = [w for w in words[2:] if w.startswith("tests/")]
        return next((path for path in paths if not (ROOT / path).exists()), "")
    path = words[1].replace(".", "/")
    found = any(
        (ROOT / top / f"{path}{end}").exists()
        for top in ("", "src")
        for end in (".py", "/__main__.py")
    )
    return "" if found else words[1]


def _wrong_verb(parent: App, words: list[str]) -> str:
    """Return the first word that is no command of an app, or no option of its command."""
    command: Any = parent
    while words and words[0] in command and not words[0].startswith("-"):
        command, words = command[words[0]], words[1:]
    placeholder = not words or words[0] == "…" or words[0].isupper() or words[0] == "NAME"
    if command.default_command is None:
        return "" if placeholder else words[0]
    arguments = command.assemble_argument_collection()
    names = {name for argument in arguments for name in argument.names}
    names |= {"--help", "--version"}
    if any(argument.parameter.allow_leading_hyphen for argument in arguments):
        names |= {word for word in words if word in ("--question", "--state")}  # of the agent
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    return next((word for word in given if word not in names), "")


def _wrong_extra(requirement: str) -> str:
    if (found := re.fullmatch(r"drawloom\[(\w+)\]", requirement)) is None:
        return requirement
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return "" if found[1] in project["optional-dependencies"] else requirement


def _route(word: str) -> bool:
    routes = re.findall(r'Route\("([^"{]+)', (ROOT / "runtime/server/app.py").read_text())
    path = re.sub(r"^https?://[^/]+", "", word)
    return any(
        path == route or (route.endswith("/") and path.startswith(route)) for route in routes
    )
