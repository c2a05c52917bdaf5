"""The rules of the house: who imports whom, what is light, what is shipped."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("engine", "graph", "runtime", "sandbox", "tools")
FOR_DEVELOPERS = "drawloom/runtime/bench/scheduling/"


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _rooms_used(path: Path) -> set[str]:
    return {m.split(".")[1] for m in _imports(path) if m.startswith("drawloom.")} & set(ROOMS)


@pytest.mark.parametrize("room", ["engine", "graph", "sandbox", "tools"])
def test_a_room_imports_itself_and_the_leaf_only(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert _rooms_used(path) <= {room}, path


def test_the_leaf_imports_no_room() -> None:
    for path in (ROOT / "src/drawloom").glob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            assert not _rooms_used(path), path


def test_the_scheduler_core_knows_the_leaf_and_the_graph_only() -> None:
    for path in (ROOT / "runtime/scheduler").rglob("*.py"):
        ours = {m for m in _imports(path) if m.startswith("drawloom.")}
        runtime = {m for m in ours if m.startswith("drawloom.runtime")}
        assert {m for m in runtime if not m.startswith("drawloom.runtime.scheduler")} == set()
        assert _rooms_used(path) <= {"graph", "runtime"}, path
        assert not _imports(path) & {"time", "random", "asyncio", "socket", "torch"}, path


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_a_link_to_its_folder(room: str) -> None:
    link = ROOT / "src/drawloom" / room
    assert link.is_symlink()
    assert link.resolve() == ROOT / room


def test_importing_drawloom_loads_nothing_heavy() -> None:
    heavy = ["torch", "docker", "sqlalchemy", "aiomqtt", "transformers", "triton", "cyclopts"]
    code = f"import sys, drawloom; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_wheel_holds_every_room_and_its_data(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "-q",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for room in ROOMS:
        modules = [p.relative_to(ROOT) for p in (ROOT / room).rglob("*.py")]
        missing = {f"drawloom/{m}" for m in modules} - set(names)
        assert all(name.startswith(FOR_DEVELOPERS) for name in missing), missing
    assert not any(name.startswith(FOR_DEVELOPERS) for name in names)
    assert "drawloom/py.typed" in names
    assert {"drawloom/sandbox/helper/helper.c", "drawloom/engine/ops/native.c"} <= set(names)
    assert "drawloom/runtime/tinyagent/chat_template.jinja" in names
    assert not any(name.split("/")[0] in ROOMS for name in names)
