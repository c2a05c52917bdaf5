"""Engine in a thread of this process.

One thread owns the core. The event loop sends it commands over a queue, and is woken once a step
with all deltas of that step.
"""

import asyncio
import logging
import threading
from collections import deque

from drawloom.engine.api import commands as do
from drawloom.engine.config import EngineConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.hosting.client import EngineClient

log = logging.getLogger("drawloom.engine")


class ThreadEngine(EngineClient):
    """Run an `EngineCore` in a thread. Make one with `load`, and close it."""

    def __init__(self, core: EngineCore) -> None:
        super().__init__(core.info, core.tokenizer)
        self._core = core
        self._commands: deque[tuple[int, do.Command]] = deque()
        self._wake = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=core.info.id, daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, model: str, config: EngineConfig | None = None) -> "ThreadEngine":
        """Load a model, blocking, and start its engine.

        Args:
            model: folder, or id on the hub.

        Raises:
            CheckpointError: if the model cannot be read.
            ConfigError: if the configuration does not fit it.
        """
        from drawloom.engine.hosting.build import load

        return cls(load(model, config or EngineConfig()))

    async def close(self) -> None:
        """End the thread; requests that run raise `EngineClosed`."""
        self._stop = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)
        self._core.close()

    def _send(self, number: int, command: do.Command) -> None:
        self._commands.append((number, command))
        self._wake.set()

    def _run(self) -> None:
        core = self._core
        try:
            while not self._stop:
                self._run_commands()
                deltas = core.prepare()
                if deltas:
                    self._deliver(deltas)
                core.compute()
                if not core.busy and not self._commands:
                    self._wake.wait()
                    self._wake.clear()
        except BaseException as error:  # a bug in the core: every request must raise it
            log.exception("engine %s ended", self.info.id)
            self._failure = f" after a failure: {error!r}"
        finally:
            self._end_all()

    def _run_commands(self) -> None:
        while self._commands:
            number, command = self._commands.popleft()
            try:
                value = self._core.handle(command)
            except Exception as error:
                self._answer(number, None, error)
            else:
                self._answer(number, value, None)


__all__ = ["ThreadEngine"]
