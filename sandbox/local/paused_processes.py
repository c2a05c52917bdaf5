"""Pausing of a namespace's processes while their files are copied.

A copy that root makes of a folder could be raced by the untrusted processes that run in it: between
the look at a name and its opening they could put a link to a file of the host there.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def paused_processes(parent: int) -> Iterator[int]:
    """Stop all processes in the namespace of a child of `parent`, until the block ends.

    Yields:
        How many were stopped: 0 if they have no namespace of their own.
    """
    stopped: set[int] = set()
    try:
        if (space := _namespace_below(parent)) is not None:
            while found := {pid for pid in _pids() if _namespace(pid) == space} - stopped:
                for pid in found:  # one that forked meanwhile has left a child for the next round
                    _signal(pid, signal.SIGSTOP)
                stopped |= found
        yield len(stopped)
    finally:
        for pid in stopped:
            _signal(pid, signal.SIGCONT)


def _namespace_below(parent: int) -> str | None:
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for child in children:
            space = _namespace(int(child))
            if space is not None and space != _namespace(os.getpid()):
                return space
    return None


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


__all__ = ["paused_processes"]
