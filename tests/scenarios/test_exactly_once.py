"""A tool's effects happen once, or its call is reported as interrupted, wherever it is killed."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from . import killed_tool
from .killed_tool import POINTS, open_runtime, work


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs that were killed with SIGKILL at each point, in a folder each."""
    base = tmp_path_factory.mktemp("killed")
    script = str(Path(killed_tool.__file__))
    subprocess.run([sys.executable, script, str(base)], check=True, timeout=120)
    return base


@pytest.mark.parametrize("first", ["command", "read"])
@pytest.mark.parametrize("number", range(POINTS))
async def test_a_killed_tool_is_done_once_or_said_to_be_interrupted(
    killed: Path, first: str, number: int
) -> None:
    folder = killed / f"{first}{number}"
    await asyncio.sleep(0.3 if number == 1 else 0)  # its command ends without its owner
    async with open_runtime(folder) as runtime:
        row = await runtime.store.program((folder / "id").read_text())
        assert row.status == ("done" if (first, number) == ("read", 1) else "running")
        if row.status == "done":
            said, seen = row.result
        else:
            said, seen = await (await runtime.resume(work, row.id)).result()
    outside = folder / "outside"
    counted = len(outside.read_text()) if outside.exists() else 0
    log = [line for line in seen if line in "abc"]
    counter = next((int(line) for line in seen if line.isdigit()), 0)
    assert all(log.count(line) <= 1 for line in "abc")
    assert counted <= 1
    assert counter <= 1
    if number == 10:  # it waited in its second command, which must not go on behind the others
        assert "b" not in log
    if said == "done":
        whole = {"a", "b", "c"} if first == "command" else {"b", "c"}
        assert (set(log), counted, counter) == (whole, 1, 1)
    # a call that had only waited for its first command goes on; one that had gone further does not
    going_on = number in (0, 1)
    assert said == ("done" if going_on else "interrupted")
