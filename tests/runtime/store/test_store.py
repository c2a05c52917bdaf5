"""Rows in SQL: what is committed, who may write."""

import asyncio
import random
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from drawloom.errors import StoreDamaged, StoreError
from drawloom.runtime.store import database
from drawloom.runtime.store.database_errors import explain
from drawloom.runtime.store.store import LeaseRow, RowExists, Store
from tests.lanes import examples


async def test_rows_survive_reopening(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    store = Store(url)
    await store.add_program("p", "agent", "m:a", {"args": [1]}, {})
    await store.intend("p", "0#0-0", "shell", {"arguments": {}})
    await store.add_llm("p", "0#0", 1.0, 2.0, {"output": [1, 2]})
    await store.end_tool("p", "0#0-0", {"content": "x"})
    await store.lease(LeaseRow("box", "p", "key", "docker", "host", 1.0))
    store.decide("p", "LeaseKV", {"ttl": 1})
    first = store.id
    await store.close()

    again = Store(url)
    assert again.id == first
    row = await again.program("p")
    assert (row.status, row.arguments, row.open) == ("held", {"args": [1]}, True)
    steps = {s.key: s for s in await again.steps("p")}
    assert steps["0#0"].detail["output"] == [1, 2]
    assert steps["0#0-0"].status == "done"
    assert [d.kind for d in await again.decisions("p")] == ["LeaseKV"]
    assert [lease.sandbox for lease in await again.leases()] == ["box"]
    await again.unlease("p")
    assert await again.leases() == []
    await again.close()


async def test_a_second_owner_is_refused_with_the_first_one_s_pid(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    store = Store(url)
    with pytest.raises(StoreError, match="in use by process"):
        Store(url)
    reader = Store(url, write=False)
    assert await reader.programs() == []
    await reader.close()
    await store.close()
    await Store(url).close()


def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store"):
        Store(f"sqlite:///{tmp_path}/missing.db", write=False)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store("nonsense://x")
    (tmp_path / "junk.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(f"sqlite:///{tmp_path}/junk.db")


async def test_another_schema_is_refused(tmp_path: Path) -> None:
    await Store(f"sqlite:///{tmp_path}/s.db").close()
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute("update about set value='99' where name='schema'")
    with pytest.raises(StoreError, match="schema 99"):
        Store(f"sqlite:///{tmp_path}/s.db")


async def test_an_unknown_program_is_an_error_with_advice(tmp_path: Path) -> None:
    store = Store("sqlite://")
    with pytest.raises(StoreError, match="drawloom ps"):
        await store.program("nope")
    await store.close()


async def test_a_disk_that_is_full_is_an_error_and_not_a_loss(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/s.db")
    await store.add_program("p", "a", "m:a", {}, {})
    with store._engine.connect() as db:
        db.exec_driver_sql("PRAGMA max_page_count=1")
        pages = db.exec_driver_sql("PRAGMA page_count").scalar()
        assert pages is not None

    def limit(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA max_page_count=1")

    sa.event.listen(store._engine, "connect", limit)
    store._engine.dispose()
    with pytest.raises(StoreError, match="full"):
        await store.intend("p", "k", "shell", {"big": "x" * 1_000_000})
    assert (await store.program("p")).status == "held"
    await store.close()


SECRET = "SECRET-of-another-tenant"


def _is_one_plain_line(words: str) -> bool:
    shown = ("\n", "SELECT", "INSERT", "CREATE", "UPDATE", "sqlalche.me", "[SQL", SECRET)
    return not any(part in words for part in shown)


async def _filled(path: Path) -> Store:
    store = Store(f"sqlite:///{path}")
    for number in range(5):
        await store.add_program(f"p{number}", "agent", "m:a", {"args": [SECRET], "kwargs": {}}, {})
        await store.intend(f"p{number}", "call0", "pay", {"arguments": {"note": SECRET}})
    return store


@pytest.mark.parametrize(
    ("pragma", "words"),
    [("max_page_count=1", "disk is full.*free some space"), ("query_only=1", "read-only")],
)
async def test_a_write_that_is_refused_says_what_to_do(
    tmp_path: Path, pragma: str, words: str
) -> None:
    store = await _filled(tmp_path / "s.db")

    def limit(connection: sqlite3.Connection, record: object) -> None:
        connection.execute(f"PRAGMA {pragma}")

    sa.event.listen(store._engine, "connect", limit)
    store._engine.dispose()
    with pytest.raises(StoreError, match=words) as refused:
        await store.intend("p0", "call1", "pay", {"big": SECRET * 100_000})
    assert _is_one_plain_line(str(refused.value))
    assert refused.value.__cause__ is None
    await store.close()


async def test_a_store_that_somebody_keeps_locked_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)
    store = await _filled(tmp_path / "s.db")
    other = sqlite3.connect(tmp_path / "s.db")
    other.execute("begin exclusive")
    with pytest.raises(StoreError, match="locked: end its transaction") as refused:
        await store.intend("p0", "call1", "pay", {"note": SECRET})
    assert _is_one_plain_line(str(refused.value))
    other.rollback()
    other.close()
    await store.intend("p0", "call1", "pay", {})
    await store.close()


async def test_a_row_that_is_there_twice_shows_nothing_of_it(tmp_path: Path) -> None:
    store = await _filled(tmp_path / "s.db")
    with pytest.raises(RowExists) as refused:
        await store.intend("p0", "call0", "pay", {"note": SECRET})
    assert _is_one_plain_line(str(refused.value))
    await store.close()


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x"])
async def test_what_json_cannot_hold_is_a_store_error(tmp_path: Path, value: object) -> None:
    store = await _filled(tmp_path / "s.db")
    with pytest.raises(StoreError, match="cannot be stored"):
        await store.intend("p0", "call1", "pay", {"note": value})
    await store.close()


_DAMAGE = [
    ("arguments", "'{not json'"),
    ("options", "'[]'"),
    ("created", "'yesterday'"),
    ("agent", "x'ff00'"),
    ("arguments", "x'ff00'"),
    ("error", "x'ff00'"),
    ("started", "'x'"),
]


@pytest.mark.parametrize(("column", "value"), _DAMAGE)
async def test_one_damaged_row_hides_no_other(tmp_path: Path, column: str, value: str) -> None:
    await (await _filled(tmp_path / "s.db")).close()
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute(f"update programs set {column} = {value} where id = 'p2'")
    store = Store(f"sqlite:///{tmp_path}/s.db")
    rows = {row.id: row for row in await store.programs()}
    assert {id for id, row in rows.items() if row.status == "unreadable"} == {"p2"}
    assert len(rows) == 5
    assert "damaged" in str(rows["p2"].error)
    with pytest.raises(StoreDamaged, match="program p2 is damaged") as damaged:
        await store.program("p2")
    assert _is_one_plain_line(str(damaged.value))
    assert len(await store.steps("p2")) == 1
    await store.close()


async def test_a_damaged_step_is_said_and_never_left_out(tmp_path: Path) -> None:
    await (await _filled(tmp_path / "s.db")).close()
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute("update steps set detail = 'nope' where program = 'p2'")
    store = Store(f"sqlite:///{tmp_path}/s.db")
    with pytest.raises(StoreDamaged, match="step of program p2 is damaged"):
        await store.steps("p2")
    assert len(await store.steps("p1")) == 1
    await store.close()


@settings(max_examples=examples(60), deadline=None)
@given(
    start=st.integers(0, 200_000),
    length=st.integers(1, 60_000),
    seed=st.integers(0, 1 << 30),
    cut=st.booleans(),
)
def test_whatever_happened_to_its_file_a_store_answers_or_says_one_line(
    damaged_folder: Path, start: int, length: int, seed: int, cut: bool
) -> None:
    async def look() -> None:
        whole = bytearray((damaged_folder / "whole.db").read_bytes())
        at = start % len(whole)
        noise = random.Random(seed).randbytes(min(length, len(whole) - at))
        whole[at : at + len(noise)] = noise
        path = damaged_folder / f"{seed}.db"
        path.write_bytes(whole[:at] if cut else whole)
        try:
            for write in (False, True):
                store = Store(f"sqlite:///{path}", write=write)
                try:
                    for row in await store.programs():
                        await store.steps(row.id)
                        await store.program(row.id)
                    await store.open_programs()
                    await store.leases()
                    if write:
                        await store.intend("p0", "more", "pay", {"note": SECRET})
                finally:
                    await store.close()
        except StoreError as error:
            assert _is_one_plain_line(str(error)), str(error)
        finally:
            for file in damaged_folder.glob(f"{seed}.db*"):
                file.unlink()

    asyncio.run(look())


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")

    async def fill() -> None:
        await (await _filled(folder / "whole.db")).close()

    asyncio.run(fill())
    return folder


class _Refused(Exception):
    sqlstate = "22P02"


@pytest.mark.parametrize("words", ['near "{": syntax error', "{0} {name}", "}", "{{"])
def test_an_error_of_a_database_may_hold_braces(words: str) -> None:
    lite = sqlite3.OperationalError(words)
    lite.sqlite_errorcode = sqlite3.SQLITE_ERROR
    assert str(explain(lite, "store s")) == f"store s: {words}"
    assert str(explain(_Refused(words), "store s")) == f"store s: {words}"
