"""The database of a store: opened, owned by one process, read and written in one thread."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from drawloom.errors import StoreError, StoreInUse, StoreMissing
from drawloom.ids import new_id
from drawloom.runtime.store.database_errors import damaged_row, dump_json, explain, public_url
from drawloom.runtime.store.ownership import (
    AdvisoryLock,
    FileLock,
    Lock,
    in_use,
    is_locked,
    private_file,
    this_process,
)
from drawloom.runtime.store.schema import ABOUT, DECISIONS, LIVES, META, check_row

log = logging.getLogger("drawloom.runtime")

T = TypeVar("T")
SCHEMA = "1"
_OWNER = ABOUT.c.name == "owner"
_BUSY_SECONDS = 10.0
_CREATING = 0x64726177  # the lock under which tables are made on PostgreSQL
_VALUES = (SQLAlchemyError, ValueError, TypeError, OverflowError)


class RowExists(StoreError):
    """Such a row is there already: somebody else wrote it."""


class Database:
    """Tables in SQL with one owner. Statements run in one thread of their own, in order.

    Args:
        url: a SQLAlchemy URL of SQLite or PostgreSQL.
        write: own the store. Without it the store must exist, and is only read.

    Attributes:
        lost: why this owner is none any more; every further write raises it.

    Raises: `StoreInUse`, `StoreMissing`, `StoreDamaged`, or another `StoreError`.
    """

    def __init__(self, url: str, *, write: bool = True) -> None:
        self.url = public_url(url)
        self.lost: StoreInUse | None = None
        self._lock: Lock | None = None
        self._life = 0
        self._pending: list[dict[str, Any]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drawloom-store")
        try:
            self._open(sa.engine.make_url(url), write)
        except StoreError:
            self._unlock()
            raise
        except ImportError as error:
            self._unlock()
            raise StoreError(
                f"store {self.url} cannot be opened: {error}: pip install 'drawloom[postgres]', "
                "and write postgresql+psycopg://…"
            ) from None
        except (SQLAlchemyError, OSError, RuntimeError, ValueError) as error:
            self._unlock()
            raise explain(error, f"store {self.url} cannot be opened") from None

    def _open(self, url: sa.URL, write: bool) -> None:
        options: dict[str, Any] = {"hide_parameters": True, "json_serializer": dump_json}
        backend, self._path = url.get_backend_name(), None
        if backend == "sqlite":
            if str(url.database).startswith("file:"):  # it would name a folder "file:"
                raise StoreError(
                    f"store {self.url} cannot be opened: SQLite's own file: addresses are not "
                    "taken: write sqlite:////the/path"
                )
            options["connect_args"] = {"check_same_thread": False, "timeout": _BUSY_SECONDS}
            if url.database in (None, "", ":memory:"):
                options["poolclass"] = sa.pool.StaticPool
            else:
                self._path = Path(str(url.database)).resolve()
                url = url.set(database=str(self._path))
                self._open_file(self._path, write)
        elif backend == "postgresql":
            options["pool_pre_ping"] = True  # a server that was started again is no fault
        else:
            raise StoreError(
                f"store {self.url} cannot be opened: it must be sqlite:///… or postgresql+psycopg://…"
            )
        self._engine = sa.create_engine(url, **options)
        try:
            self._prepare(write)
            if write:
                if backend == "postgresql":
                    self._lock = AdvisoryLock(url, self.id, lambda: in_use(self.url, self._owner()))
                self._begin_life()
        except BaseException:
            self._engine.dispose()
            raise

    def _open_file(self, path: Path, write: bool) -> None:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path)
            private_file(path)
        elif not path.exists() or not path.stat().st_size:
            raise StoreMissing(f"there is no store at {path}")

    def _prepare(self, write: bool) -> None:
        with self._engine.begin() as db:
            if write:
                if self._engine.dialect.name == "sqlite":
                    db.exec_driver_sql("PRAGMA journal_mode=WAL")
                else:  # two that find no tables would both make them
                    db.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATING)))
                META.create_all(db)
            elif not sa.inspect(db).has_table("about"):
                raise StoreMissing(f"there is no store at {self.url}")
            rows = db.execute(sa.select(ABOUT.c.name, ABOUT.c.value)).all()
            found = {str(row[0]): str(row[1]) for row in rows}
            if "schema" not in found and write:
                found = {"schema": SCHEMA, "id": new_id("store"), "owner": "0"}
                values = [{"name": n, "value": v} for n, v in found.items()]
                db.execute(sa.insert(ABOUT), values)
            elif "owner" not in found and write:
                db.execute(sa.insert(ABOUT).values(name="owner", value="0"))
        if found.get("schema") != SCHEMA:
            raise StoreError(
                f"store {self.url} has schema {found.get('schema')}, this drawloom writes "
                f"{SCHEMA}: use the version that made it, or a new store"
            )
        self.id: str = found["id"]

    # --- ownership ------------------------------------------------------------------------

    def _begin_life(self) -> None:
        """Be the owner: from this commit on no earlier one can write."""
        with self._engine.begin() as db:
            before = int(db.execute(sa.select(ABOUT.c.value).where(_OWNER)).scalar_one())
            self._life, now = before + 1, time.time()
            db.execute(sa.update(ABOUT).where(_OWNER).values(value=str(self._life)))
            row = {"number": self._life, "owner": this_process(), "opened": now, "alive": now}
            db.execute(sa.insert(LIVES).values(row))

    def _owner(self) -> str:
        """Return the process that opened the store last, for a message."""
        query = sa.select(LIVES.c.owner).order_by(LIVES.c.number.desc()).limit(1)
        with self._engine.connect() as db:
            return str(db.execute(query).scalar() or "another process")

    def _fence(self, db: sa.Connection) -> None:
        """Refuse to commit for an owner that is none any more; the next one waits for ours."""
        found = db.execute(sa.select(ABOUT.c.value).where(_OWNER).with_for_update(read=True))
        if found.scalar() != str(self._life):
            self.lost = in_use(self.url, self._owner())
            raise self.lost

    async def beat(self, *, active: bool = True) -> None:
        """Look whether the store is still owned; if `active`, note that the owner lives.

        Raises `StoreInUse` when it is another's now.
        """

        def work() -> None:
            if self._lock is None:
                return
            try:
                self._lock.check()
            except StoreInUse as lost:
                self.lost = lost
                raise
            with self._engine.begin() as db:
                if active:
                    mine = sa.update(LIVES).where(LIVES.c.number == self._life)
                    db.execute(mine.values(alive=time.time()))
                self._fence(db)

        await self._run(work)

    async def last_alive(self, at: float) -> float:
        """Return when the owner at Unix time `at` last showed a sign of life; at least `at`."""
        query = sa.select(LIVES.c.alive).where(LIVES.c.opened <= at)
        rows = await self._read(query.order_by(LIVES.c.number.desc()).limit(1))
        return max([at, *(float(row["alive"]) for row in rows)])

    async def is_owned(self) -> bool:
        """Return whether a runtime, this one or another, has the store open for writing."""
        if self._lock is not None:
            return True
        if self._path is not None:
            return FileLock.is_held(self._path)
        if self._engine.dialect.name == "sqlite":
            return True

        def work() -> bool:
            with self._engine.connect() as db:
                return is_locked(db, self.id)

        return await self._run(work)

    async def flush(self) -> None:
        """Write the decisions that no commit took along."""
        if self._pending:
            await self._write()

    async def close(self) -> None:
        """Write what is pending and let the next owner in."""
        try:
            await self.flush()
        except StoreError as error:
            log.warning("decisions are lost: %s", error)
        await asyncio.to_thread(self._thread.shutdown)
        self._engine.dispose()
        self._unlock()

    # --- the thread -----------------------------------------------------------------------

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _write(self, *statements: sa.Executable) -> None:
        if self.lost is not None:
            raise self.lost
        pending, self._pending = self._pending, []

        def work() -> None:
            with self._engine.begin() as db:
                for statement in statements:
                    db.execute(statement)
                if pending:
                    db.execute(sa.insert(DECISIONS), pending)
                if self._lock is not None:
                    self._fence(db)

        try:
            await self._run(work)
        except StoreError:
            self._pending = pending + self._pending
            raise

    async def _read(self, query: sa.Select[Any], what: str = "a row") -> list[dict[str, Any]]:
        """Rows as they were written. Raises `StoreDamaged`, naming `what` cannot be read."""

        def work() -> list[dict[str, Any]]:
            with self._engine.connect() as db:
                rows = [dict(row) for row in db.execute(query).mappings()]
            for row in rows:
                check_row(row)
            return rows

        return await self._run(work, damage=what)

    async def _run(self, work: Callable[[], T], damage: str = "") -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except StoreError:
            raise
        except IntegrityError:
            raise RowExists(f"store {self.url}: there is such a row already") from None
        except _VALUES as error:
            where = f"store {self.url}"
            if damage and not hasattr(error, "orig"):
                raise damaged_row(error, where, damage) from None
            raise explain(error, where) from None
        except RuntimeError as error:
            raise StoreError(f"store {self.url} is closed: {error}") from None


__all__ = ["Database", "RowExists"]
