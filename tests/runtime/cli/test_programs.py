"""What the commands say of stores: missing, damaged, of programs that failed."""

import json
import sqlite3
import time
from pathlib import Path

import pytest

from drawloom.errors import StoreDamaged, StoreError, StoreInUse
from drawloom.runtime.cli import programs, sandboxes
from drawloom.runtime.cli.options import EngineOptions
from drawloom.runtime.store.store import Store


async def _with_program(path: Path, **values: object) -> str:
    url = f"sqlite:///{path}"
    store = Store(url)
    for id in ("p1", "p2"):
        await store.add_program(id, "agent", "m:a", {"args": [], "kwargs": {}}, {})
    now = time.time()
    await store.set_program("p1", status="failed", started=now, ended=now, **values)
    await store.close()
    return url


async def test_a_store_that_is_missing_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.db").touch()
    for name in ("none.db", "empty.db"):
        assert await programs.ps(f"sqlite:///{tmp_path}/{name}", 10, False) == 0
        assert capsys.readouterr().out == "no program was ever run here\n"


async def test_a_damaged_store_is_called_damaged_by_every_command(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(bytes(range(256)) * 80)
    url = f"sqlite:///{tmp_path}/s.db"
    options = programs.Options("tinyagent", url, "drawloom", "none", EngineOptions())
    agent = f"{Path(__file__).parents[2] / 'scenarios' / 'killed_agent.py'}:alarm"
    for command in (
        programs.ps(url, 10, True),
        programs.trace("p1", url, True),
        programs.resume("p1", {}, url, EngineOptions(), True),
        programs.run(agent, [], options, True),
        sandboxes.gc(url, None, False, True),
    ):
        with pytest.raises(StoreDamaged, match="is damaged") as damaged:
            await command
        assert "\n" not in str(damaged.value)


async def test_one_damaged_row_is_listed_as_unreadable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = await _with_program(tmp_path / "s.db")
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute("update programs set arguments = '{not json' where id = 'p1'")
    assert await programs.ps(url, 10, True) == 0
    listed = {row["id"]: row["status"] for row in json.loads(capsys.readouterr().out)}
    assert listed == {"p1": "unreadable", "p2": "interrupted"}
    assert await programs.ps(url, 10, False) == 0
    with pytest.raises(StoreDamaged, match="program p1 is damaged"):
        await programs.trace("p1", url, True)
    assert await programs.trace("p2", url, True) == 0


@pytest.mark.parametrize("as_json", [True, False])
async def test_a_trace_shows_why_a_program_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    url = await _with_program(tmp_path / "s.db", error="ContextTooLong: [/the] prompt")
    assert await programs.trace("p1", url, as_json) == 0
    assert "ContextTooLong: [/the] prompt" in capsys.readouterr().out
    assert await programs.ps(url, 10, as_json) == 0
    assert "ContextTooLong: [/the] prompt" in capsys.readouterr().out


async def test_what_is_in_use_is_refused_by_commands_that_write(tmp_path: Path) -> None:
    url = await _with_program(tmp_path / "s.db")
    owner = Store(url)
    with pytest.raises(StoreInUse):
        await sandboxes.gc(url, None, False, True)
    assert await programs.ps(url, 10, True) == 0
    with pytest.raises(StoreError, match="no program nope"):
        await programs.trace("nope", url, True)
    await owner.close()
