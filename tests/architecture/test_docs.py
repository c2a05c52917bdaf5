"""Pages, comments and docstrings name files and identifiers that exist."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
OURS = ("docs", "engine", "examples", "graph", "runtime", "sandbox", "src", "tests", "tools", ".ci")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(r"[\w.{}*-][\w./{},*-]*\.(?:py|c|h|md|jinja|toml|txt|png)")
_IDENTIFIER = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\([^`]*\))?`")
_REMARKED = re.compile(
    r"(?<![\w./<{*:-])(?:[\w.-]+/)*[\w-]+\.(?:py|c|h|md|jinja|toml|txt)\b(?![\w*/(])"
)
_SUFFIXES = {"py", "c", "h", "md", "jinja", "toml", "txt", "png", "html", "json"}
_FOLDER = re.compile(r"[\w.-][\w./-]*/")
_TITLE = re.compile(r"^```\w+ title=\"([^\"]+)\"$", re.MULTILINE)
_MADE = {"tools.py", "demo.html", "demo.png", "config.json"}  # of a user's, or made by a command
_MADE |= {title for page in PAGES for title in _TITLE.findall(page.read_text())}


_MADE_IN_CODE = _MADE | {"path/to/file.py", "path.py", "file.py", "brave-piano.txt", "calls.h"}
_NOT_OURS = {"io_uring", "runc", "drawloom_"}  # a system call, a program, a prefix


def _tree() -> set[str]:
    """Return each file and folder of the repository, and each end of its path."""
    found = set[str]()
    for top in OURS:
        for path in [ROOT / top, *(ROOT / top).rglob("*")]:
            parts = path.relative_to(ROOT).parts
            found |= {"/".join(parts[i:]) for i in range(len(parts))}
    return found | {path.name for path in ROOT.iterdir()}


TREE = _tree()
SOURCES = sorted(
    path
    for top in OURS
    for path in (ROOT / top).rglob("*")
    if path.suffix in (".py", ".c", ".h") and path.is_file()
)


def _remarks(path: Path) -> Iterator[str]:
    """Yield the comments and docstrings of a Python file; the whole text of another one."""
    text = path.read_text()
    if not _REMARKED.search(text):
        return
    if path.suffix != ".py":
        yield text
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def _named(text: str) -> set[str]:
    """Return the files and folders that a page names in backticks, without what follows a colon."""
    quoted = {name.partition(":")[0] for name in _QUOTED.findall(_FENCE.sub("", text))}
    paths = {name for name in quoted if _FILE.fullmatch(name) or _FOLDER.fullmatch(name)}
    paths |= {name for name in quoted if "/" in name and name.split("/")[0] in OURS}
    return {name for name in paths if not set(name) & set("*{} <>")} - _MADE


def _links(text: str) -> set[str]:
    return {link for link in _LINK.findall(_FENCE.sub("", text)) if "://" not in link}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    missing = {name for name in _named(page.read_text()) if name.rstrip("/") not in TREE}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    links = {link.partition("#")[0] for link in _links(page.read_text())} - {""}
    assert not {link for link in links if not (page.parent / link).exists()}


def test_files_that_code_names_exist() -> None:
    named = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for remark in _remarks(path)
        for name in _REMARKED.findall(remark)
        if name not in TREE and name not in _MADE_IN_CODE
    }
    assert not named


def test_identifiers_that_pages_name_exist() -> None:
    words = {word for path in SOURCES for word in re.findall(r"\w+", path.read_text())}
    words |= set(re.findall(r"\w+", (ROOT / "pyproject.toml").read_text())) | _NOT_OURS
    missing = set()
    for page in [
        page for page in PAGES if page.name != "CHANGELOG.md" and "results" not in page.parts
    ]:
        for name in _IDENTIFIER.findall(_FENCE.sub("", page.read_text())):
            parts = name.split(".")
            if parts[-1] not in _SUFFIXES and not set(parts) <= words:
                missing.add(f"{page.relative_to(ROOT)}: {name}")
    assert not missing


def test_a_file_that_is_not_there_is_found() -> None:
    named = _named("`no/such.py`, `docs/none.md:3` and `docs/*.md`; `a.b` is no file")
    assert named == {"no/such.py", "docs/none.md"}
    assert not named & TREE
    assert {"runtime/scheduler/policy.py", "scheduler/policy.py", "policy.py"} <= TREE
