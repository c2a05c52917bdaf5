"""Tools that block the event loop, found and named."""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from weakref import WeakKeyDictionary

log = logging.getLogger("drawloom.runtime")
_LOOK_SECONDS = 0.25
_WARN_SECONDS = 1.0
_IDLE_LOOKS = 20  # without a call to watch, then the thread ends


class BlockingWatch:
    """Warn when a tool blocks the event loop, from a thread that watches it.

    The thread lives as long as there are calls to watch. Make it in the thread of the loop.

    Args:
        code: the code of a function whose frame holds the tool's name in the local `blame`.
    """

    def __init__(self, code: CodeType) -> None:
        self._code = code
        self._owner = threading.get_ident()
        self._calls = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._beat = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the event loop for the time of the block."""
        with self._changed:
            self._calls += 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._look,
                    args=(asyncio.get_running_loop(),),
                    name="drawloom-watch",
                    daemon=True,
                )
                self._thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask the loop for a sign of life; find what blocks it when none comes."""
        idle = 0
        while True:
            asked, self._beat = time.monotonic(), 0.0
            try:
                loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop is closed
                return
            time.sleep(_LOOK_SECONDS)
            if not self._beat:
                self._wait(loop, asked)
            with self._changed:
                idle = 0 if self._calls else idle + 1
                if idle > _IDLE_LOOKS:
                    self._thread = None
                    return

    def _answer(self) -> None:
        self._beat = time.monotonic()

    def _wait(self, loop: asyncio.AbstractEventLoop, asked: float) -> None:
        name = None
        while not self._beat and not loop.is_closed():
            time.sleep(_LOOK_SECONDS)
            if name is None and time.monotonic() - asked >= _WARN_SECONDS:
                name = self._blamed()
                if name is not None and not self._beat:
                    log.warning(
                        "tool %s blocks the event loop, and every program with it, for %.1f s by "
                        "now: write it as a plain `def` (it then runs in a thread), or use "
                        "asyncio.to_thread for what blocks",
                        name,
                        time.monotonic() - asked,
                    )
        if name is not None and self._beat:
            log.warning("tool %s blocked the event loop for %.1f s", name, self._beat - asked)

    def _blamed(self) -> str | None:
        """Return the tool that the loop's thread is in, or None."""
        frame: FrameType | None = sys._current_frames().get(self._owner)
        while frame is not None:
            if frame.f_code is self._code:
                return str(frame.f_locals.get("blame"))
            frame = frame.f_back
        return None


_watches: "WeakKeyDictionary[asyncio.AbstractEventLoop, BlockingWatch]" = WeakKeyDictionary()


def watch(code: CodeType) -> BlockingWatch:
    """Return the watch of the running loop."""
    loop = asyncio.get_running_loop()
    if loop not in _watches:
        _watches[loop] = BlockingWatch(code)
    return _watches[loop]


__all__ = ["BlockingWatch", "watch"]
