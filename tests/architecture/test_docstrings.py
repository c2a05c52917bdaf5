"""Docstrings keep one form, so that a page of the API reads as one page."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("engine", "graph", "runtime", "sandbox", "tools")
LONGEST = 88
# a first line is a verb and its object, or a noun phrase; it never begins with one of these
_NO_VERB = (
    "What Who Whose Whom Those Of It Its Whether When Where How All Some Nobody Somebody Everybody "
    "They There That This These One So As If From For In On At By To With Each Every Not No Is Are "
    "The A An"
).split()
_HEAD = re.compile(rf"({'|'.join(_NO_VERB)})\b")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(tree: ast.Module) -> Iterator[Definition]:
    for node in ast.walk(tree):
        if isinstance(node, Definition):
            yield node


def _faults(node: Definition) -> Iterator[str]:
    """Say what is wrong with the first line of a docstring, where there is one."""
    written = ast.get_docstring(node)
    if written is None:
        return
    first = written.split("\n")[0]
    if _HEAD.match(first):
        yield f"begins with {first.split()[0]!r}"
    if not isinstance(node, ast.ClassDef) and first[:1].islower():
        yield "does not begin with a capital"
    if len(first) > LONGEST:
        yield f"has a first line of {len(first)} characters"
    if not first.endswith((".", ":")):
        yield "has a first line without a full stop"


def _folders() -> list[str]:
    """Return the folders of modules: rooms, their sub-rooms, the leaf and the examples."""
    paths = [ROOT / "src/drawloom", ROOT / "examples", *(ROOT / room for room in ROOMS)]
    paths += [path.parent for room in ROOMS for path in (ROOT / room).rglob("*/__init__.py")]
    return sorted({str(path.relative_to(ROOT)) for path in paths})


def _faults_in(folder: str) -> list[str]:
    found = []
    for path in sorted((ROOT / folder).glob("*.py")):
        for node in _definitions(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            found += [f"{where}: {node.name} {fault}" for fault in _faults(node)]
    return found


@pytest.mark.parametrize("folder", _folders())
def test_a_docstring_begins_with_a_verb_in_a_line_of_its_own(folder: str) -> None:
    found = _faults_in(folder)
    assert not found, f"{len(found)} docstrings:\n" + "\n".join(found)


@pytest.mark.parametrize("folder", _folders())
def test_a_module_says_what_it_holds(folder: str) -> None:
    texts = {path.name: path.read_text() for path in (ROOT / folder).glob("*.py")}
    assert not {name for name, text in texts.items() if text and not _says(text)}


def _says(text: str) -> bool:
    return ast.get_docstring(ast.parse(text)) is not None


@pytest.mark.parametrize(
    ("first", "fault"),
    [
        ("What a call costs.", "'What'"),
        ("Return the cost", "full stop"),
        ("return the cost.", "capital"),
        ("Return " + "x" * LONGEST + ".", "characters"),
    ],
)
def test_a_fault_is_found(first: str, fault: str) -> None:
    (node,) = _definitions(ast.parse(f'def f():\n    """{first}"""'))
    (said,) = _faults(node)
    assert fault in said
