"""Sub-rooms of a room import each other in one direction only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# what each sub-room may import of its own room, lowest first; a room's own files are "."
ALLOWED = {
    "engine": {
        ".": set(),
        "text": {"."},
        "kvcache": {"."},
        "api": {".", "text"},
        "core": {".", "api", "kvcache", "text"},
        "kernels": {"."},
        "kernel_tools": {".", "kernels"},
        "ops": {".", "kernels"},
        "models": {".", "kernels", "kvcache", "ops"},
        "runners": {".", "core", "kernels", "kvcache", "models", "ops", "text"},
        "hosting": {".", "api", "core", "kvcache", "models", "runners", "text"},
    },
    "sandbox": {
        ".": set(),
        "helper": set(),
        "api": {"helper"},
        "pool": {"api"},
        "docker": {"api", "helper"},
        "local": {"api", "helper"},
        "remote": {"api", "helper", "pool"},
        "testing": {"api", "helper"},
    },
    "runtime": {
        ".": set(),
        "tinyagent": set(),
        "scheduler": set(),
        "store": set(),
        "dispatch": {"scheduler", "store"},
        "execution": {"dispatch", "scheduler", "store"},
        "console": {"store"},
        "server": {"console", "dispatch", "execution", "scheduler"},
        "sdk": {"console", "dispatch", "execution", "scheduler", "server", "store"},
        "sim": {"scheduler"},
        "demo": {"console", "dispatch", "execution", "sdk"},
    },
}
# imported by nobody: the ends of the chain
ENDS = {"bench", "cli"}
# room and sub-room of the circles that are still to be cut
CIRCLES: set[tuple[str, str]] = set()


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _subroom(room: str, module: str) -> str | None:
    """Return the sub-room of a module of a room; "." for its own files."""
    parts = module.split(".")
    if parts[:2] != ["drawloom", room] or len(parts) < 3:
        return None
    return parts[2] if (ROOT / room / parts[2]).is_dir() else "."


def _subrooms_used(room: str, subroom: str) -> set[str]:
    folder = ROOT / room if subroom == "." else ROOT / room / subroom
    files = folder.glob("*.py") if subroom == "." else folder.rglob("*.py")
    used = {_subroom(room, name) for path in files for name in _imports(path)}
    return {name for name in used if name is not None} - {subroom}


@pytest.mark.parametrize(
    ("room", "subroom"), [(room, name) for room in ALLOWED for name in ALLOWED[room]]
)
def test_a_subroom_imports_no_more_than_it_may(room: str, subroom: str) -> None:
    assert _subrooms_used(room, subroom) <= ALLOWED[room][subroom]


@pytest.mark.parametrize("room", ALLOWED)
def test_every_subroom_has_a_rule(room: str) -> None:
    folders = {path.parent.name for path in (ROOT / room).glob("*/__init__.py")}
    assert folders - ENDS <= set(ALLOWED[room])


@pytest.mark.parametrize("room", ALLOWED)
def test_the_rules_have_no_circles_but_those_that_are_named(room: str) -> None:
    rules = {name: set(allowed) for name, allowed in ALLOWED[room].items()}
    for at, name in CIRCLES:
        if at == room:
            rules[name] = set()
    while free := [name for name, allowed in rules.items() if not allowed & set(rules)]:
        for name in free:
            del rules[name]
    assert rules == {}


@pytest.mark.parametrize("room", ALLOWED)
def test_nobody_imports_benchmarks_or_the_command_line(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        inside = path.relative_to(ROOT / room).parts[0]
        if inside in ENDS:
            continue
        assert not {_subroom("runtime", name) for name in _imports(path)} & ENDS, path


@pytest.mark.parametrize("room", ALLOWED)
def test_every_subroom_says_what_it_offers(room: str) -> None:
    for path in (ROOT / room).glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
