"""The engine in a child process: ``python -m drawloom.engine.hosting.process_worker FD``.

Spoken over a socket pair with pickled frozen dataclasses; the parent made the child, so each
trusts the other. First comes ``(model, config)``, answered by ``("ready", info)`` or
``("failed", error)``; then ``(number, command)`` in, ``("answer", number, value, error)`` and
``("deltas", [...])`` out. When the parent is gone, so is the child.

From its start on the child also sends ``("alive",)`` every second, from a thread of its own, so
that neither a slow step nor loading a model keeps it silent. It stops when one step or command
takes longer than `_LONGEST_STEP`: a child that computes nothing any more is to be replaced.
"""

import contextlib
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from drawloom.engine.core.engine_core import EngineCore
from drawloom.errors import DrawloomError, EngineError

_BEAT = 1.0
_LONGEST_STEP = 1800.0


class Line:
    """The connection to the parent, for several threads, and the signs of life."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._since: float | None = time.monotonic()

    def begin(self) -> None:
        """Send signs of life from now on."""
        threading.Thread(target=self._beat, name="alive", daemon=True).start()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                since = self._since
                if since is None or time.monotonic() - since < _LONGEST_STEP:
                    self.send(("alive",))
                time.sleep(_BEAT)

    def working(self) -> None:
        """Something begins that must end some time."""
        self._since = time.monotonic()

    def send(self, message: Any) -> None:
        with self._sending:
            self._connection.send(message)

    def recv(self) -> Any:
        return self._connection.recv()

    def waits(self, idle: bool) -> bool:
        """Whether a command is there; an idle child waits for one."""
        if not idle:
            return self._connection.poll(0)
        self._since = None
        found = self._connection.poll(None)
        self.working()
        return found


def serve(line: Line) -> None:
    model, config = line.recv()
    try:
        core = _load(model, config)
    except DrawloomError as error:
        line.send(("failed", error))
        return
    line.send(("ready", core.info))
    while True:
        line.working()
        while line.waits(not core.busy):
            number, command = line.recv()
            line.send(("answer", number, *_handled(core, command)))
        deltas = core.prepare()
        if deltas:
            line.send(("deltas", deltas))
        core.compute()


def _load(model: str, config: Any) -> EngineCore:
    from drawloom.engine.hosting.build import load

    return load(model, config)


def _handled(core: EngineCore, command: Any) -> tuple[Any, Exception | None]:
    try:
        return core.handle(command), None
    except DrawloomError as error:
        return None, error
    except Exception as error:  # of any type: it may not survive being sent
        return None, EngineError(f"{type(command).__name__} failed: {error!r}")


def main() -> None:
    line = Line(Connection(int(sys.argv[1])))
    line.begin()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # parent is gone
        serve(line)


if __name__ == "__main__":
    main()
