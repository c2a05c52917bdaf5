"""Locks by which one runtime owns a store, by whatever name it was opened."""

import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from drawloom.errors import StoreError, StoreInUse

_KEEPALIVES = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
)


class Lock(Protocol):
    """Hold the ownership of a store until it is closed."""

    def check(self) -> None:
        """Make sure that the lock is still held.

        Raises:
            StoreInUse: another process has it.
            StoreError: that cannot be known now.
        """
        ...

    def close(self) -> None:
        """Let the next owner in. Harmless when it is closed already."""
        ...


def this_process() -> str:
    """Describe this process as the owner of a store, for the message to others."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def in_use(store: str, owner: str) -> StoreInUse:
    """Return the error for a store that has an owner."""
    return StoreInUse(
        f"store {store} is in use by {owner}: stop it, or give this runtime another store"
    )


def private_file(path: Path) -> None:
    """Make sure that a database file exists and that nobody else may read what is stored.

    SQLite gives its log and its index the mode of the database. Raises `StoreError` for a file
    with another name: SQLite finds the log by name, so what one name wrote the other would lose;
    and for what is no file, of which SQLite would wait for ever (a FIFO) or say nothing clear.
    """
    if path.exists() and not path.is_file():
        raise StoreError(f"store {path} cannot be opened: it is there, and is no file")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if path.is_file() and path.stat().st_nlink > 1:
            raise StoreError(
                f"store {path} may be in use by another name: its file has hard links, and what "
                "is written by one name is lost by the other; keep one, make the rest symbolic"
            ) from None
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        # a file of another user's is that user's to protect
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if file.is_file() and file.stat().st_mode & 0o777 != 0o600:
                file.chmod(0o600)


class FileLock:
    """Lock a file beside a database, whose path must be resolved: symbolic links meet there."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(f"{path}.lock", flags, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._file, 200, 0).decode(errors="replace").strip()
            self.close()
            raise in_use(str(path), owner or "another process") from None
        os.fchmod(self._file, 0o600)
        os.truncate(self._file, 0)
        os.pwrite(self._file, this_process().encode(), 0)

    def check(self) -> None:
        """Do nothing: a lock of the kernel on this host ends with the process only."""

    def close(self) -> None:
        """Release the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @staticmethod
    def is_held(path: Path) -> bool:
        """Return whether some process owns the database file."""
        try:
            with open(f"{path}.lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False


class AdvisoryLock:
    """Hold an advisory lock of PostgreSQL, on a connection that lives as long as the lock.

    Args:
        url: the database.
        store: the store's id; a database may have several, in schemas of their own.
        held: makes the error when another session has the lock.
    """

    def __init__(self, url: sa.URL, store: str, held: Callable[[], StoreInUse]) -> None:
        self._engine = sa.create_engine(
            url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT", hide_parameters=True
        )
        self._key, self._held = lock_key(store), held
        self._session = self._take()

    def _take(self) -> sa.Connection:
        session = self._engine.connect()
        try:
            session.exec_driver_sql(_KEEPALIVES)  # of a host that is gone the server must know
            if session.scalar(sa.select(sa.func.pg_try_advisory_lock(self._key))):
                return session
        except SQLAlchemyError:
            session.close()
            raise
        session.close()
        raise self._held()

    def check(self) -> None:
        """Take the lock again after the server ended the session. Raises as `Lock.check`."""
        try:
            self._session.exec_driver_sql("SELECT 1")
        except SQLAlchemyError:
            self._session.close()
            self._session = self._take()

    def close(self) -> None:
        """Release the lock and close its connection."""
        # the server ends a session some time after it was closed; the next owner may come before
        with contextlib.suppress(SQLAlchemyError):
            self._session.execute(sa.select(sa.func.pg_advisory_unlock(self._key)))
        self._session.close()
        self._engine.dispose()


def lock_key(store: str) -> int:
    """Return the number of a store's lock among those of its database."""
    digest = hashlib.blake2b(f"drawloom:{store}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def is_locked(db: sa.Connection, store: str) -> bool:
    """Return whether some session owns a store on PostgreSQL."""
    key = lock_key(store) & (1 << 64) - 1
    query = sa.text(
        "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND classid::bigint = :high AND objid::bigint = :low AND objsubid = 1"
    )
    low = key & 0xFFFFFFFF
    return db.execute(query, {"high": key >> 32, "low": low}).first() is not None


__all__ = [
    "AdvisoryLock",
    "FileLock",
    "Lock",
    "in_use",
    "is_locked",
    "lock_key",
    "private_file",
    "this_process",
]
