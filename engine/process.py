"""The engine in a child process, whose crash fails no program.

When the child dies another is started, and every request goes on behind the tokens that were
already delivered: sampling noise belongs to (seed, lineage, position), so it says what it would
have said. Its KV is computed again; leases are gone and answered as missing.
"""

import asyncio
import logging
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from drawloom.engine import commands as do
from drawloom.engine.base import Delta, EngineInfo, GenerateRequest
from drawloom.engine.checkpoint import resolve
from drawloom.engine.config import EngineConfig
from drawloom.engine.host import Host, continued
from drawloom.engine.sequence import FinishReason
from drawloom.engine.tokenizer import Tokenizer
from drawloom.errors import EngineClosed, EngineError

log = logging.getLogger("drawloom.engine")

_CRASHES = 3


@dataclass(slots=True)
class _InFlight:
    request: GenerateRequest
    tokens: list[int] = field(default_factory=list)
    crashes: int = 0


class ProcessEngine(Host):
    """An engine core in a process of its own. Make one with `ProcessEngine.load`."""

    def __init__(self, model: str, config: EngineConfig) -> None:
        folder = resolve(model)
        self._model, self._config = str(folder), config
        self._process, self._connection, info = self._start()
        super().__init__(info, Tokenizer.load(Path(folder)))
        self._in_flight: dict[str, _InFlight] = {}
        self._weights: do.UpdateWeights | None = None
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"{info.id}-reader", daemon=True)
        self._reader.start()

    @classmethod
    def load(cls, model: str, config: EngineConfig | None = None) -> "ProcessEngine":
        """Load a model folder or hub id. Blocks; raises `CheckpointError` or `ConfigError`."""
        return cls(model, config or EngineConfig())

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self) -> tuple["subprocess.Popen[bytes]", Connection, EngineInfo]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "drawloom.engine.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        connection = Connection(ours.detach())
        try:
            connection.send((self._model, self._config))
            word, value = connection.recv()
        except (EOFError, OSError):
            word = "failed"
            value = EngineError(f"the engine's process ended at once, with {process.wait()}")
        if word == "ready":
            return process, connection, value
        connection.close()
        process.wait()
        raise value

    async def close(self) -> None:
        with self._lock:
            self._closing = True
        self._process.terminate()
        await asyncio.to_thread(self._reader.join)
        await asyncio.to_thread(self._process.wait)
        self._connection.close()

    # --- to the child ---------------------------------------------------------------------

    def _send(self, number: int, command: do.Command) -> None:
        if isinstance(command, do.Submit):
            with self._lock:
                self._in_flight[command.request.id] = _InFlight(command.request)
        elif isinstance(command, do.Cancel):
            with self._lock:
                self._in_flight.pop(command.request, None)
        elif isinstance(command, do.UpdateWeights):
            if command.tensors is not None:
                error = EngineError("an engine in a process takes weights from a folder")
                self._answer(number, None, error)
                return
            self._weights = command
        self._write(number, command)

    def _write(self, number: int, command: do.Command) -> None:
        try:
            with self._sending:
                self._connection.send((number, command))
        except OSError:
            log.debug("the engine's process is gone; the next one hears of it")

    # --- from the child -------------------------------------------------------------------

    def _read(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                if self._closing or not self._restart():
                    break
                continue
            if message[0] == "answer":
                self._answered(*message[1:])
            else:
                self._deltas(message[1])
        self._end_all()

    def _answered(self, number: int, value: Any, error: Exception | None) -> None:
        with self._lock:
            command = self._answers.get(number, (None, None))[0]
            if error is not None and isinstance(command, do.Submit):
                self._in_flight.pop(command.request.id, None)
        self._answer(number, value, error)

    def _deltas(self, deltas: list[Delta]) -> None:
        with self._lock:
            for delta in deltas:
                running = self._in_flight.get(delta.request)
                if running is not None:
                    running.tokens += delta.tokens
                    running.crashes = 0 if delta.tokens else running.crashes
                    if delta.finish is not None:
                        del self._in_flight[delta.request]
        self._deliver(deltas)

    def _restart(self) -> bool:
        """Another child takes over; False when there can be none."""
        code = self._process.wait()
        log.warning("the process of engine %s ended with %s; starting another", self.info.id, code)
        try:
            process, connection, _ = self._start()
        except EngineError as error:
            self._failure = f": its process died and another does not start: {error}"
            return False
        with self._sending:  # what was sent meanwhile is among the unanswered, and sent again
            self._connection.close()
            self._process, self._connection = process, connection
        if self._weights is not None:
            self._write(-1, self._weights)
        with self._lock:
            answers = {n: c for n, (c, _) in self._answers.items()}
            running = list(self._in_flight.values())
        asked = {c.request.id for c in answers.values() if isinstance(c, do.Submit)}
        for number, command in answers.items():
            self._write(number, command)
        for job in running:
            self._take_up(job, job.request.id in asked)
        return True

    def _take_up(self, job: _InFlight, asked: bool) -> None:
        job.crashes += 1
        if job.crashes > _CRASHES:
            error = EngineClosed(f"the engine died {_CRASHES} times over request {job.request.id}")
            with self._lock:
                self._in_flight.pop(job.request.id, None)
            self._deliver([Delta(job.request.id, (), "", (), FinishReason.ERROR, None, error)])
        elif not asked:
            self._write(-1, do.Submit(continued(job.request, job.tokens)))


__all__ = ["ProcessEngine"]
