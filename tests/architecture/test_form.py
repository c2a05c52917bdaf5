"""Calls, files and imports keep a form that a reader can follow."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("engine", "graph", "runtime", "sandbox", "tools")
FOLDERS = (*ROOMS, "examples", "src/drawloom", "tests")
MOST_POSITIONAL, MOST_LINES, MOST_SKIPS = 6, 400, 9
# arguments of kernels are many, and their order is the order of the launch
KERNELS = "kernels"


def _files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        top = ROOT / folder
        yield from sorted(top.glob("*.py") if folder == "src/drawloom" else top.rglob("*.py"))


def _ours(*folders: str) -> list[Path]:
    """Return the files below folders, without the agents that are written for other libraries."""
    return [path for path in _files(*folders) if "clients" not in path.parts]


def _positional(path: Path) -> Iterator[str]:
    """Yield the calls of a file with more positional arguments than a reader can tell apart."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            given = [arg for arg in node.args if not isinstance(arg, ast.Starred)]
            if len(given) > MOST_POSITIONAL and not _is_row(node):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {len(given)} positional arguments"


def _is_row(node: ast.Call) -> bool:
    """Return whether a call's arguments are the columns of a table."""
    return ast.unparse(node.func).endswith(("add_row", "Table"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_call_names_its_arguments_where_they_are_many(folder: str) -> None:
    paths = [path for path in _ours(folder) if KERNELS not in path.parts]
    assert [call for path in paths for call in _positional(path)] == []


def test_the_formatter_is_hardly_ever_told_to_skip() -> None:
    words = ("fmt" + ": skip", "fmt" + ": off")
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _ours(*FOLDERS)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(word in line for word in words)
    ]
    assert len(lines) <= MOST_SKIPS, lines


def test_no_module_is_long() -> None:
    paths = _files(*ROOMS, "src/drawloom", "examples")
    long = {str(p.relative_to(ROOT)) for p in paths if len(p.read_text().splitlines()) > MOST_LINES}
    assert not long


# --- circles of imports -------------------------------------------------------------------------


def _modules() -> dict[str, Path]:
    """Return each module of the package by its name."""
    found = {}
    for path in _files(*ROOMS):
        found[".".join(("drawloom", *path.relative_to(ROOT).with_suffix("").parts))] = path
    for path in _files("src/drawloom"):
        found[f"drawloom.{path.stem}"] = path
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def _imports(name: str, modules: dict[str, Path]) -> set[str]:
    """Return the modules that a module imports, at its top, in a function or for types only."""
    found = set()
    for node in ast.walk(ast.parse(modules[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & modules.keys()) - {name}


def _in_circles(graph: dict[str, set[str]]) -> set[str]:
    """Return the nodes from which a way leads back to themselves."""
    return {name for name in graph if name in _reached(graph, name)}


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found, left = set[str](), set(graph[start])
    while left:
        found |= left
        left = set().union(*(graph[name] for name in left)) - found
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = _modules()
    graph = {name: _imports(name, modules) for name in modules}
    graph.pop("drawloom", None)  # the public names are loaded when they are asked for
    assert not _in_circles({name: used & graph.keys() for name, used in graph.items()})


def test_a_circle_is_found() -> None:
    assert _in_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}
    assert _in_circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
