"""Child process of an engine: ``python -m drawloom.engine.hosting.process_worker FD``.

It talks over a socket pair in pickled frozen dataclasses; the parent made the child, so each trusts
the other. First comes ``(model, config)``, answered by ``("ready", info)`` or
``("failed", error)``; then ``(number, command)`` in, ``("answer", number, value, error)`` and
``("deltas", [...])`` out. When the parent is gone, the child ends.

From its start on the child also sends the heartbeat ``("alive",)`` every second, from a thread of
its own, so that neither a slow step nor loading a model keeps it silent. The heartbeat stops when
one step or command takes longer than `_MAX_STEP_SECONDS`: the parent then replaces the child.
"""

import contextlib
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from drawloom.engine.core.engine_core import EngineCore
from drawloom.errors import DrawloomError, EngineError

_HEARTBEAT_SECONDS = 1.0
_MAX_STEP_SECONDS = 1800.0


class ParentLink:
    """Share the connection to the parent between threads, and send heartbeats over it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._busy_since: float | None = time.monotonic()

    def start_heartbeat(self) -> None:
        """Send heartbeats from now on."""
        threading.Thread(target=self._beat, name="alive", daemon=True).start()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                since = self._busy_since
                if since is None or time.monotonic() - since < _MAX_STEP_SECONDS:
                    self.send(("alive",))
                time.sleep(_HEARTBEAT_SECONDS)

    def mark_busy(self) -> None:
        """Note that a step or command begins, which must end within `_MAX_STEP_SECONDS`."""
        self._busy_since = time.monotonic()

    def send(self, message: Any) -> None:
        """Send a message."""
        with self._sending:
            self._connection.send(message)

    def recv(self) -> Any:
        """Wait for a message and return it."""
        return self._connection.recv()

    def has_message(self, idle: bool) -> bool:
        """Return whether a message is there; if `idle`, wait for one."""
        if not idle:
            return self._connection.poll(0)
        self._busy_since = None
        found = self._connection.poll(None)
        self.mark_busy()
        return found


def serve(parent: ParentLink) -> None:
    """Load the model that the parent names, then run its commands until it is gone."""
    model, config = parent.recv()
    try:
        core = _load(model, config)
    except DrawloomError as error:
        parent.send(("failed", error))
        return
    parent.send(("ready", core.info))
    while True:
        parent.mark_busy()
        while parent.has_message(not core.busy):
            number, command = parent.recv()
            parent.send(("answer", number, *_handle(core, command)))
        deltas = core.prepare()
        if deltas:
            parent.send(("deltas", deltas))
        core.compute()


def _load(model: str, config: Any) -> EngineCore:
    from drawloom.engine.hosting.build import load

    return load(model, config)


def _handle(core: EngineCore, command: Any) -> tuple[Any, Exception | None]:
    try:
        return core.handle(command), None
    except DrawloomError as error:
        return None, error
    except Exception as error:  # of any type: it may not survive pickling
        return None, EngineError(f"{type(command).__name__} failed: {error!r}")


def main() -> None:
    """Serve the parent over the socket whose number is the first argument."""
    parent = ParentLink(Connection(int(sys.argv[1])))
    parent.start_heartbeat()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # parent is gone
        serve(parent)


if __name__ == "__main__":
    main()
