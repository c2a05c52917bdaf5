"""A store that version 802c29e wrote opens, shows its programs and resumes those that were killed.

The store has an agent with LLM calls, tools and branches, and a graph; each once ended and once
killed in its last tool. It is kept as text, `stored_programs.sql`.
"""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from drawloom import Runtime
from drawloom.runtime.console.timeline import Activity, read_track
from tests.scenarios.stored_agents import State, count_words, tally

_DUMP = Path(__file__).with_name("stored_programs.sql")
_AGENTS: dict[str, Any] = {"tally": tally, "counting": count_words}


@pytest.fixture
def url(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.executescript(_DUMP.read_text())
    db.close()
    return f"sqlite:///{tmp_path}/s.db"


async def test_programs_of_an_earlier_version_resume(url: str) -> None:
    async with Runtime(store=url, sandbox="none") as runtime:
        rows = [row for row in await runtime.store.programs() if row.open]
        assert sorted(row.agent for row in rows) == ["counting", "tally"]
        for row in rows:
            before = await runtime.store.steps(row.id)
            result = await (await runtime.resume(_AGENTS[row.agent], row.id)).result()
            assert result == ("saved 9" if row.agent == "tally" else State(["harp", "piano"], 9))
            after = {step.key: step for step in await runtime.store.steps(row.id)}
            assert all(after[s.key] == s for s in before if s.status == "done")


async def test_ended_programs_of_an_earlier_version_have_their_timelines(url: str) -> None:
    async with Runtime(store=url, sandbox="none") as runtime:
        rows = [row for row in await runtime.store.programs() if row.status == "done"]
        assert sorted(row.agent for row in rows) == ["counting", "tally"]
        for row in rows:
            track = await read_track(runtime.store, row.id)
            shown = {bar.activity for bar in track.bars}
            assert {Activity.DECODE, Activity.TOOL} <= shown


async def test_learned_graphs_of_an_earlier_version_are_used(url: str) -> None:
    async with Runtime(store=url, sandbox="none") as runtime:
        assert {"tally", "counting"} <= set(runtime.dispatcher.scheduler.state.graphs)
