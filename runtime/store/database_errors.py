"""Errors of databases as one line that says what to do; never SQL, parameters or passwords."""

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, StatementError

from drawloom.errors import StoreDamaged, StoreError

_FULL = "the disk is full: free some space, then `drawloom resume` the programs that failed"
_READ_ONLY = "it is read-only: give this user permission to write the file and its folder"
_LOCKED = "another program keeps it locked: end its transaction (a shell? a backup?) and try again"
_DAMAGED = "it is damaged ({}): restore a copy, or save what can be read with `sqlite3 … .recover`"
_SQLITE = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_TOOBIG: "a value is larger than SQLite takes (1 GB): let tools return less",
    sqlite3.SQLITE_CANTOPEN: "its file cannot be opened: check the path and the permissions of the "
    "file and its folder",
    sqlite3.SQLITE_IOERR: "its file cannot be read or written ({}): look at the disk",
}
_SQLITE_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)
_POSTGRES = {
    "53100": _FULL,
    "25006": _READ_ONLY,
    "55P03": _LOCKED,
    "42501": "this user may not do that: {}",
    "28P01": "the password is wrong",
}


def explain(error: BaseException, where: str) -> StoreError:
    """Translate what a database raised.

    Args:
        error: what SQLAlchemy, a driver or a value's conversion raised.
        where: what was done to which store; the message begins with it.
    """
    origin = _origin(error)
    words = _first_line(origin)
    code = getattr(origin, "sqlite_errorcode", None)
    if isinstance(code, int):
        code &= 0xFF
        if code in _SQLITE_DAMAGE:
            return StoreDamaged(f"{where}: {_DAMAGED.format(words)}")
        return StoreError(f"{where}: {_advice(_SQLITE, code, words)}")
    state = str(getattr(origin, "sqlstate", None) or "")
    if state.startswith("XX"):
        return StoreDamaged(f"{where}: {_DAMAGED.format(words)}")
    if state:
        return StoreError(f"{where}: {_advice(_POSTGRES, state, words)}")
    if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
        return StoreError(f"{where}: a value cannot be stored ({type(origin).__name__})")
    return StoreError(f"{where}: {words}")


def _advice(known: Mapping[Any, str], code: int | str, words: str) -> str:
    """Return what to do about an error code, or the database's words where that is not known."""
    return known[code].format(words) if code in known else words


def damaged_row(error: BaseException, where: str, what: str) -> StoreDamaged:
    """Describe a row that cannot be read."""
    return StoreDamaged(
        f"{where}: {what} is damaged ({_first_line(_origin(error))}); the other rows can be read"
    )


def _origin(error: BaseException) -> BaseException:
    found = getattr(error, "orig", None)
    return found if isinstance(found, BaseException) else error


def _first_line(error: BaseException) -> str:
    """Return an error's message without details that may hold stored values."""
    if isinstance(error, json.JSONDecodeError):
        return "no valid JSON"
    if isinstance(error, UnicodeError) or "decode to UTF-8" in str(error):
        return "no valid text"
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def dump_json(value: Any) -> str:
    """Dump JSON that every database takes: numbers that are not finite become text."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0.0:
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def plain_text(text: str) -> str:
    """Escape what not every database takes: NUL and halves of surrogate pairs."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def public_url(url: str) -> str:
    """Return a store's URL without its password."""
    try:
        return sa.engine.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url


__all__ = ["damaged_row", "dump_json", "explain", "plain_text", "public_url"]
