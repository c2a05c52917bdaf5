"""The engine in a child process: ``python -m drawloom.engine.child FD``.

Spoken over a socket pair with pickled frozen dataclasses; the parent made the child, so each
trusts the other. First comes ``(model, config)``, answered by ``("ready", info)`` or
``("failed", error)``; then ``(number, command)`` in, ``("answer", number, value, error)`` and
``("deltas", [...])`` out. When the parent is gone, so is the child.
"""

import contextlib
import sys
from multiprocessing.connection import Connection
from typing import Any

from drawloom.engine.core import EngineCore
from drawloom.errors import DrawloomError


def serve(connection: Connection) -> None:
    model, config = connection.recv()
    try:
        core = _load(model, config)
    except DrawloomError as error:
        connection.send(("failed", error))
        return
    connection.send(("ready", core.info))
    while True:
        while connection.poll(0 if core.busy else None):
            number, command = connection.recv()
            connection.send(("answer", number, *_handled(core, command)))
        deltas = core.prepare()
        if deltas:
            connection.send(("deltas", deltas))
        core.compute()


def _load(model: str, config: Any) -> EngineCore:
    from drawloom.engine.loading import load

    return load(model, config)


def _handled(core: EngineCore, command: Any) -> tuple[Any, Exception | None]:
    try:
        return core.handle(command), None
    except Exception as error:
        return None, error


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # parent is gone
        serve(connection)


if __name__ == "__main__":
    main()
