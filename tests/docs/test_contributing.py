"""Recipes of CONTRIBUTING.md name functions, classes and tests that are where it says."""

import re

import pytest

from tests.docs.page_runner import ROOT

_ROW = re.compile(r"^\|(.*)\|$", re.MULTILINE)
_NAME = re.compile(r"`([A-Za-z_]\w+)(?:\.(\w+))?`")
_PATH = re.compile(r"`((?:[\w.-]+/)+(?:[\w-]+\.\w+)?)`")
_FILE = {"py", "md", "toml", "json", "c"}


def _rows() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## How to add")[2]
    return [row for row in _ROW.findall(text) if _PATH.search(row) and _NAME.search(row)]


def _text(path: str) -> str:
    place = ROOT / path
    files = place.rglob("*.py") if place.is_dir() else [place]
    return "\n".join(file.read_text() for file in files)


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row.split("|")[0].strip()[:50])
def test_names_of_a_recipe_are_in_its_files(row: str) -> None:
    text = "\n".join(_text(path) for path in _PATH.findall(row))
    pairs = [pair for pair in _NAME.findall(row) if pair[1] not in _FILE]
    names = {part for pair in pairs for part in pair if part}
    assert not {name for name in names if not re.search(rf"\b{name}\b", text)}


def test_tests_that_recipes_name_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named
    assert not {name for name in named if f"def {name}(" not in tests}
