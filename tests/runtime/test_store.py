"""Rows in SQL: what is committed, who may write."""

import sqlite3
from pathlib import Path

import pytest

from drawloom.errors import StoreError
from drawloom.runtime.store import LeaseRow, Store


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

    import sqlalchemy as sa

    sa.event.listen(store._engine, "connect", limit)
    store._engine.dispose()
    with pytest.raises(StoreError, match="full"):
        await store.intend("p", "k", "shell", {"big": "x" * 1_000_000})
    assert (await store.program("p")).status == "held"
    await store.close()


async def test_epochs_count_up_across_lives_and_names_do_not_meet(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    store = Store(url)
    assert [await store.next_epoch("hosts") for _ in range(3)] == [1, 2, 3]
    assert await store.next_epoch("other") == 1
    await store.close()
    again = Store(url)
    assert await again.next_epoch("hosts") == 4
    await again.close()
