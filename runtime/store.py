"""Durable state: every program, step, decision and lease, as rows in SQL.

Steps are append-only rows with a stable key; nothing is ever a snapshot of something larger. A
tool's intent is committed before the tool starts, its result and an LLM call's end before the
program goes on; decisions ride along with the next commit. SQLite in a file is the default;
PostgreSQL is another URL. One runtime owns a store at a time, readers need no leave.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from drawloom.errors import StoreError
from drawloom.ids import new_id

T = TypeVar("T")
SCHEMA = "1"

_meta = sa.MetaData()
_about = sa.Table(
    "about", _meta, sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String)
)
_programs = sa.Table(
    "programs",
    _meta,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("agent", sa.String, nullable=False),
    sa.Column("entry", sa.String, nullable=False),
    sa.Column("arguments", sa.JSON, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("result", sa.JSON),
    sa.Column("error", sa.Text),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
)
_steps = sa.Table(
    "steps",
    _meta,
    sa.Column("program", sa.String, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("detail", sa.JSON, nullable=False),
)
_decisions = sa.Table(
    "decisions",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("program", sa.String, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
)
_leases = sa.Table(
    "leases",
    _meta,
    sa.Column("sandbox", sa.String, primary_key=True),
    sa.Column("program", sa.String, nullable=False, index=True),
    sa.Column("env", sa.String, nullable=False),
    sa.Column("provider", sa.String, nullable=False),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
_graphs = sa.Table(
    "graphs",
    _meta,
    sa.Column("agent", sa.String, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("learned", sa.JSON, nullable=False),
)
_counters = sa.Table(
    "counters",
    _meta,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class ProgramRow:
    """A program. `status`: held, running, done, failed or cancelled."""

    id: str
    agent: str
    entry: str
    arguments: Any
    options: dict[str, Any]
    status: str
    result: Any
    error: str | None
    created: float
    started: float | None
    ended: float | None

    @property
    def open(self) -> bool:
        return self.status in ("held", "running")


@dataclass(frozen=True, slots=True)
class StepRow:
    """An LLM call or a tool call. `status`: intent (it may have begun) or done."""

    program: str
    key: str
    kind: str
    name: str
    status: str
    started: float
    ended: float | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DecisionRow:
    program: str
    at: float
    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LeaseRow:
    sandbox: str
    program: str
    env: str
    provider: str
    host: str
    created: float


class Store:
    """All of a runtime's rows. Its methods run in one thread of their own, in order."""

    def __init__(self, url: str, *, write: bool = True) -> None:
        self.url = url
        self._lock: IO[str] | None = None
        self._pending: list[dict[str, Any]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drawloom-store")
        try:
            parsed = sa.engine.make_url(url)
            path = parsed.database if parsed.get_backend_name() == "sqlite" else None
            if path and path != ":memory:":
                self._open_file(Path(path), write)
            pool = {"poolclass": sa.pool.StaticPool} if path in (None, "", ":memory:") else {}
            options: dict[str, Any] = pool if parsed.get_backend_name() == "sqlite" else {}
            if parsed.get_backend_name() == "sqlite":
                options["connect_args"] = {"check_same_thread": False, "timeout": 10.0}
            self._engine = sa.create_engine(url, **options)
            self._prepare(write)
        except (SQLAlchemyError, ImportError, OSError) as error:
            self._unlock()
            raise StoreError(f"store {url} cannot be opened: {error}") from None
        except StoreError:
            self._unlock()
            raise

    def _open_file(self, path: Path, write: bool) -> None:
        if not write:
            if not path.exists():
                raise StoreError(f"there is no store at {path}")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(f"{path}.lock", "a+")  # noqa: SIM115 - held until close
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "another process"
            raise StoreError(
                f"store {path} is in use by process {owner}: stop it, or give this runtime "
                "another store"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _prepare(self, write: bool) -> None:
        with self._engine.begin() as db:
            if self._engine.dialect.name == "sqlite" and write:
                db.exec_driver_sql("PRAGMA journal_mode=WAL")
            if write:
                _meta.create_all(db)
            rows = db.execute(sa.select(_about.c.name, _about.c.value)).all()
            found = {str(row[0]): str(row[1]) for row in rows}
            if not found and write:
                found = {"schema": SCHEMA, "id": new_id("store")}
                values = [{"name": n, "value": v} for n, v in found.items()]
                db.execute(sa.insert(_about), values)
        if found.get("schema") != SCHEMA:
            raise StoreError(
                f"store {self.url} has schema {found.get('schema')}, this drawloom writes "
                f"{SCHEMA}: use the version that made it, or a new store"
            )
        self.id: str = found["id"]

    def is_owned(self) -> bool:
        """Whether a runtime, this one or another, has the store open for writing."""
        path = self._engine.url.database
        if self._lock is not None or self._engine.dialect.name != "sqlite" or not path:
            return True
        try:
            with open(f"{path}.lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    # --- programs -------------------------------------------------------------------------

    async def add_program(
        self, id: str, agent: str, entry: str, arguments: Any, options: dict[str, Any]
    ) -> None:
        row = {
            "id": id, "agent": agent, "entry": entry, "arguments": arguments,
            "options": options, "status": "held", "created": time.time(),
        }  # fmt: skip
        await self._write(sa.insert(_programs).values(row))

    async def set_program(self, id: str, **values: Any) -> None:
        """Change a program's status, times, result or error."""
        await self._write(sa.update(_programs).where(_programs.c.id == id).values(**values))

    async def program(self, id: str) -> ProgramRow:
        """Raises `StoreError` when there is none."""
        query = sa.select(_programs).where(_programs.c.id == id)
        rows = await self._read(query)
        if not rows:
            raise StoreError(f"there is no program {id} in {self.url}: see `drawloom ps`")
        return ProgramRow(**rows[0])

    async def programs(self, limit: int = 100) -> list[ProgramRow]:
        """The newest first."""
        query = sa.select(_programs).order_by(_programs.c.created.desc()).limit(limit)
        return [ProgramRow(**row) for row in await self._read(query)]

    # --- steps ----------------------------------------------------------------------------

    async def intend(self, program: str, key: str, name: str, detail: dict[str, Any]) -> None:
        """A tool is about to start. Committed when this returns."""
        row = {
            "program": program, "key": key, "kind": "tool", "name": name, "status": "intent",
            "started": time.time(), "detail": detail,
        }  # fmt: skip
        await self._write(sa.insert(_steps).values(row))

    async def end_tool(self, program: str, key: str, detail: dict[str, Any]) -> None:
        where = sa.and_(_steps.c.program == program, _steps.c.key == key)
        change = {"status": "done", "ended": time.time(), "detail": detail}
        await self._write(sa.update(_steps).where(where).values(change))

    async def add_llm(
        self, program: str, key: str, started: float, ended: float, detail: dict[str, Any]
    ) -> None:
        """An LLM call ended; `detail` holds what was sampled, not text to be tokenised again."""
        row = {
            "program": program, "key": key, "kind": "llm", "name": "llm", "status": "done",
            "started": started, "ended": ended, "detail": detail,
        }  # fmt: skip
        await self._write(sa.insert(_steps).values(row))

    async def steps(self, program: str) -> list[StepRow]:
        query = sa.select(_steps).where(_steps.c.program == program).order_by(_steps.c.started)
        return [StepRow(**row) for row in await self._read(query)]

    # --- decisions and leases -------------------------------------------------------------

    def decide(self, program: str, kind: str, detail: dict[str, Any]) -> None:
        """Note a decision; it is written with the next commit."""
        self._pending.append(
            {"program": program, "at": time.time(), "kind": kind, "detail": detail}
        )

    async def decisions(self, program: str) -> list[DecisionRow]:
        columns = [c for c in _decisions.c if c.name != "id"]
        query = sa.select(*columns).where(_decisions.c.program == program).order_by(_decisions.c.id)
        return [DecisionRow(**row) for row in await self._read(query)]

    async def lease(self, row: LeaseRow) -> None:
        values = {name: getattr(row, name) for name in LeaseRow.__slots__}
        await self._write(sa.insert(_leases).values(values))

    async def unlease(self, program: str) -> None:
        await self._write(sa.delete(_leases).where(_leases.c.program == program))

    async def retain(self, program: str, sandboxes: set[str]) -> None:
        """Of a program's leases only those of these remain."""
        gone = _leases.c.sandbox.not_in(sandboxes)
        await self._write(sa.delete(_leases).where(_leases.c.program == program, gone))

    async def hand_over(self, branch: str, program: str, envs: set[str]) -> None:
        """A branch's leases are the program's, whose own of the same environments are over."""
        mine, theirs = _leases.c.program == program, _leases.c.program == branch
        await self._write(
            sa.delete(_leases).where(mine, _leases.c.env.in_(envs)),
            sa.update(_leases).where(theirs).values(program=program),
        )

    async def leases(self) -> list[LeaseRow]:
        return [LeaseRow(**row) for row in await self._read(sa.select(_leases))]

    async def next_epoch(self, name: str) -> int:
        """Count up a counter that outlives this process, and commit it.

        Returns: a number greater than any that was returned for this name before, from 1 on.
        """
        mine = _counters.c.name == name

        def work() -> int:
            with self._engine.begin() as db:
                change = sa.update(_counters).where(mine).values(value=_counters.c.value + 1)
                if not db.execute(change).rowcount:
                    db.execute(sa.insert(_counters).values(name=name, value=1))
                return int(db.execute(sa.select(_counters.c.value).where(mine)).scalar_one())

        return await self._run(work)

    # --- what was learned of agents -------------------------------------------------------

    async def save_graphs(self, learned: dict[str, dict[str, Any]]) -> None:
        """Replace what is kept of these agents."""
        rows = [{"agent": a, "at": time.time(), "learned": data} for a, data in learned.items()]
        if rows:
            gone = sa.delete(_graphs).where(_graphs.c.agent.in_(list(learned)))
            await self._write(gone, sa.insert(_graphs).values(rows))

    async def graphs(self) -> dict[str, dict[str, Any]]:
        """What was learned, by agent; nothing in a store that is older than this."""
        if not await self._run(lambda: sa.inspect(self._engine).has_table("graphs")):
            return {}
        rows = await self._read(sa.select(_graphs).order_by(_graphs.c.agent))
        return {row["agent"]: row["learned"] for row in rows}

    async def flush(self) -> None:
        if self._pending:
            await self._write()

    async def close(self) -> None:
        await self.flush()
        await asyncio.to_thread(self._thread.shutdown)
        self._engine.dispose()
        self._unlock()

    # --- the thread -----------------------------------------------------------------------

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _write(self, *statements: sa.Executable) -> None:
        pending, self._pending = self._pending, []

        def work() -> None:
            with self._engine.begin() as db:
                for statement in statements:
                    db.execute(statement)
                if pending:
                    db.execute(sa.insert(_decisions), pending)

        try:
            await self._run(work)
        except StoreError:
            self._pending = pending + self._pending
            raise

    async def _read(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        def work() -> list[dict[str, Any]]:
            with self._engine.connect() as db:
                return [dict(row) for row in db.execute(query).mappings()]

        return await self._run(work)

    async def _run(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except SQLAlchemyError as error:
            raise StoreError(f"store {self.url}: {error}") from None
        except RuntimeError as error:
            raise StoreError(f"store {self.url} is closed: {error}") from None


__all__ = ["DecisionRow", "LeaseRow", "ProgramRow", "StepRow", "Store"]
