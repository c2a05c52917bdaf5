"""A PostgreSQL server of the tests' own, on a Unix socket: no port, no password, nothing shared."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

_OPTIONS = ("listen_addresses=", "fsync=off", "shared_buffers=16MB", "max_connections=40")


def server_programs() -> Path | None:
    """The folder of initdb and postgres; None where they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


class Server:
    """Databases on a private server.

    Args:
        programs: where initdb and postgres are.
        folder: an empty folder, which a user who is not root may enter.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        options = ("-U", "postgres", "-A", "trust", "--no-sync")
        initdb = self._as_user(programs / "initdb", "-D", folder / "data", *options)
        subprocess.run(initdb, check=True, capture_output=True)

    def _as_user(self, *words: Path | str) -> list[str]:
        command = [str(word) for word in words]
        return (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
            if (os.geteuid() == 0)
            else command
        )

    def start(self) -> None:
        options = [word for option in _OPTIONS for word in ("-c", option)]
        data, postgres = self._folder / "data", self._programs / "postgres"
        command = self._as_user(postgres, "-D", data, "-k", self._folder, *options)
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        engine = sa.create_engine(self.url("postgres"), poolclass=sa.pool.NullPool)
        for _ in range(600):
            with contextlib.suppress(sa.exc.OperationalError), engine.connect():
                return
            time.sleep(0.05)
        raise RuntimeError("PostgreSQL did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(2)  # a fast shutdown: sessions are ended
            self._process.wait()
            self._process = None

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        self._databases += 1
        name = f"store{self._databases}"
        self.run("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def run(self, database: str, statement: str) -> None:
        engine = sa.create_engine(
            self.url(database), poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as db:
            db.exec_driver_sql(statement)
        engine.dispose()


@contextlib.contextmanager
def private_server(programs: Path) -> Iterator[Server]:
    """Run a server as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix="drawloom-pg-"))
    server = Server(programs, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
