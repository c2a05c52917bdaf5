"""One owner a store, whatever the store is called and wherever it is."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drawloom import Env, Runtime, Sandbox, agent, tool
from drawloom.errors import StoreError, StoreInUse, StoreMissing
from drawloom.runtime.store.store import Store

from .postgres import Server

ME = f"process {os.getpid()} on {socket.gethostname()}"


def _same(path: Path) -> str:
    return f"sqlite:///{path}"


def _symbolic(path: Path) -> str:
    other = path.with_name("link.db")
    other.symlink_to(path)
    return f"sqlite:///{other}"


def _symbolic_folder(path: Path) -> str:
    other = path.parent.with_name("linked")
    other.symlink_to(path.parent)
    return f"sqlite:///{other / path.name}"


def _relative(path: Path) -> str:
    return f"sqlite:///{os.path.relpath(path)}"


def _dotted(path: Path) -> str:
    return f"sqlite:///{path.parent}/./x/../{path.name}"


def _driver(path: Path) -> str:
    return f"sqlite+pysqlite:///{path}"


OTHER_NAMES = [_same, _symbolic, _symbolic_folder, _relative, _dotted, _driver]


@pytest.mark.parametrize("rename", OTHER_NAMES)
async def test_another_name_of_a_file_has_the_same_owner(
    tmp_path: Path, rename: Callable[[Path], str]
) -> None:
    folder = tmp_path / "folder"
    first = Store(f"sqlite:///{folder}/s.db")
    with pytest.raises(StoreInUse, match=ME) as refused:
        Store(rename(folder / "s.db"))
    assert "\n" not in str(refused.value)
    await first.add_program("p", "a", "m:a", {}, {})
    await first.close()
    second = Store(_same(folder / "s.db"))
    assert [row.id for row in await second.programs()] == ["p"]
    await second.close()


async def test_a_hard_link_is_refused(tmp_path: Path) -> None:
    first = Store(f"sqlite:///{tmp_path}/s.db")
    os.link(tmp_path / "s.db", tmp_path / "t.db")
    with pytest.raises(StoreError, match="in use by another name"):
        Store(f"sqlite:///{tmp_path}/t.db")
    await first.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
async def test_nobody_else_may_read_what_is_stored(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = Store(f"sqlite:///{tmp_path}/s.db")
        await store.add_program("p", "a", "m:a", {"secret": 1}, {})
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
        assert modes == dict.fromkeys(("s.db", "s.db-wal", "s.db-shm", "s.db.lock"), 0o600)
    finally:
        os.umask(before)
    await store.close()


async def test_an_older_store_is_closed_to_others(tmp_path: Path) -> None:
    await Store(f"sqlite:///{tmp_path}/s.db").close()
    (tmp_path / "s.db").chmod(0o644)
    await Store(f"sqlite:///{tmp_path}/s.db").close()
    assert stat.S_IMODE((tmp_path / "s.db").stat().st_mode) == 0o600


async def test_an_owner_whose_lock_was_lost_cannot_write_behind_the_next(tmp_path: Path) -> None:
    first = Store(f"sqlite:///{tmp_path}/s.db")
    (tmp_path / "s.db.lock").unlink()
    second = Store(f"sqlite:///{tmp_path}/s.db")
    for write in (first.intend("p", "k", "pay", {}), first.beat(), first.unlease("p")):
        with pytest.raises(StoreInUse):
            await write
    await second.intend("p", "k", "pay", {})
    await first.close()
    await second.close()


async def test_who_reads_sees_whether_somebody_owns(tmp_path: Path) -> None:
    owner = Store(f"sqlite:///{tmp_path}/s.db")
    reader = Store(f"sqlite:///{tmp_path}/s.db", write=False)
    assert await reader.is_owned()
    await owner.close()
    assert not await reader.is_owned()
    await reader.close()


# --- PostgreSQL -----------------------------------------------------------------------------


async def test_postgres_has_one_owner_too(postgres: Server) -> None:
    url = postgres.new_database()
    with pytest.raises(StoreMissing):
        Store(url, write=False)
    first = Store(url)
    reader = Store(url, write=False)
    assert await reader.is_owned()
    with pytest.raises(StoreInUse, match=ME):
        Store(url)
    await first.intend("p", "k", "pay", {"nan": float("nan"), "text": "\0\ud800"})
    await first.add_program("p", "a", "m:a", {}, {})
    await first.set_program("p", error="\0\ud800")
    await first.close()
    assert not await reader.is_owned()
    assert [row.key for row in await reader.steps("p")] == ["k"]
    await reader.close()
    await Store(url).close()


async def test_stores_of_several_databases_do_not_meet(postgres: Server) -> None:
    stores = [Store(postgres.new_database()) for _ in range(2)]
    for store in stores:
        await store.close()


async def test_a_killed_owner_s_lock_is_free(postgres: Server) -> None:
    url = postgres.new_database()
    code = (
        "import os; from drawloom.runtime.store.store import Store; "
        f"Store({url!r}); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    for _ in range(100):  # the server notices in a moment
        try:
            store = Store(url)
        except StoreInUse:
            await asyncio.sleep(0.05)
        else:
            break
    await store.close()


_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = '{}' AND pid <> pg_backend_pid()"
)


async def test_a_lock_whose_session_ended_is_taken_again_or_missed(postgres: Server) -> None:
    url = postgres.new_database()
    first = Store(url)
    database = str(first._engine.url.database)
    postgres.run("postgres", _SESSIONS.format(database))
    await first.beat()
    with pytest.raises(StoreInUse):
        Store(url)
    postgres.run("postgres", _SESSIONS.format(database))
    second = Store(url)
    with pytest.raises(StoreInUse):
        await first.intend("p", "k", "pay", {})
    with pytest.raises(StoreInUse, match=ME):
        await first.beat()
    await second.intend("p", "k", "pay", {})
    assert (await second.steps("p"))[0].key == "k"
    await first.close()
    await second.close()


async def test_a_server_that_was_started_again_is_no_fault(postgres: Server) -> None:
    url = postgres.new_database()
    store = Store(url)
    await store.intend("p", "k", "pay", {})
    postgres.stop()
    with pytest.raises(StoreError) as down:
        await store.steps("p")
    assert "\n" not in str(down.value)
    postgres.start()
    await store.beat()
    await store.intend("p", "l", "pay", {})
    with pytest.raises(StoreInUse):
        Store(url)
    await store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_second_runtime_is_refused_before_it_sweeps(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    if kind == "postgres":
        url = request.getfixturevalue("postgres").new_database()
    started, go_on = asyncio.Event(), asyncio.Event()

    @tool(env=Env("any", memory="64m"), fresh=True)
    async def work(sandbox: Sandbox) -> str:
        await sandbox.sh("echo precious > f")
        started.set()
        await go_on.wait()
        return (await sandbox.sh("cat f")).text

    @agent(tools=[work])
    async def run() -> str:
        return await work()

    async with Runtime(store=url, sandbox="process") as first:
        running = asyncio.create_task(first.run(run))
        await started.wait()
        with pytest.raises(StoreInUse, match=ME):
            async with Runtime(store=url, sandbox="process"):
                pass
        go_on.set()
        assert await running == "precious\n"


async def test_one_that_lost_its_store_leaves_the_next_owner_s_environments(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    started, go_on = asyncio.Event(), asyncio.Event()

    @tool(env=Env("any", memory="64m"))
    async def work(sandbox: Sandbox) -> str:
        await sandbox.sh("echo precious > f")
        started.set()
        await go_on.wait()
        return ""

    @agent(tools=[work])
    async def run() -> str:
        return await work()

    async with Runtime(store=url, sandbox="process") as first:
        program = await first.start(run)
        await started.wait()
        (lease,) = await first.store.leases()
        (tmp_path / "s.db.lock").unlink()
        second = Store(url)
        go_on.set()
        with pytest.raises(StoreError):
            await program.result()
    assert [row.status for row in await second.programs()] == ["running"]
    assert await second.leases() == [lease]
    assert first._dispatcher is None
    await second.close()
    async with Runtime(store=url, sandbox="process") as third:
        assert third.dispatcher.pool is not None
        assert [box.id for box in await third.dispatcher.pool.provider.owned()] == [lease.sandbox]
        await (await third.resume(run, program.id)).cancel()


def test_an_address_of_sqlite_s_own_is_refused_and_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="file: addresses"):
        Store(f"sqlite:///file:{tmp_path}/runs.db?uri=true")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_path_that_is_no_file_is_one_line_and_not_waited_for(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "store.db")
    for write in (True, False):
        with pytest.raises(StoreError) as refused:
            Store(f"sqlite:///{tmp_path}/store.db", write=write)
        assert "\n" not in str(refused.value)
    with pytest.raises(StoreError, match="is no file"):
        Store(f"sqlite:///{tmp_path}/store.db")
