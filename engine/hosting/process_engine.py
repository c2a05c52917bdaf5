"""The engine in a child process, whose crash fails no program.

When the child dies another is started. Every request that ran there gets a delta that is `lost`,
and goes on behind the tokens that were already delivered when its next one is asked for: sampling
noise belongs to (seed, conversation, position), so it says what it would have said. Its KV is
computed again; leases are gone and answered as missing. A scheduler that watches (`watch`) hears
of the death first, and may ask for the next deltas in its own order.

A child that hangs is killed and replaced like one that died: it sends a sign of life every second
from a thread of its own (`process_worker`), so that a slow step or the loading of a model does not
count as silence. One that dies while it starts is tried again, more and more slowly; at
last the engine closes, and `EngineClient.ended` says why.
"""

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import Delta, EngineInfo
from drawloom.engine.config import EngineConfig
from drawloom.engine.hosting.client import EngineClient
from drawloom.engine.models.checkpoint import resolve
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import CheckpointError, ConfigError, EngineClosed, EngineError

log = logging.getLogger("drawloom.engine")

_SILENCE = 10.0
_STARTS = 6
_FIRST_PAUSE = 0.25
_LONG_LIFE = 60.0
_TICKS = 8
_PATIENCE = 5.0


class ProcessEngine(EngineClient):
    """An engine core in a process of its own. Make one with `ProcessEngine.load`.

    Args:
        silence: seconds without any sign of life after which a child counts as hung; twelve times
            as many while it starts (importing torch from a cold disk holds up all its threads).
    """

    def __init__(self, model: str, config: EngineConfig, silence: float = _SILENCE) -> None:
        folder = resolve(model)
        self._model, self._config, self._silence = str(folder), config, silence
        self._starting = threading.Lock()
        self._ending = threading.Event()
        self._heard = 0
        self._weights: do.UpdateWeights | None = None
        self._process, self._connection, info = self._start()
        super().__init__(info, Tokenizer.load(Path(folder)))
        self._running: set[str] = set()
        self._starts, self._born = 0, time.monotonic()
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"{info.id}-reader", daemon=True)
        self._reader.start()

    @classmethod
    def load(
        cls, model: str, config: EngineConfig | None = None, silence: float = _SILENCE
    ) -> "ProcessEngine":
        """Load a model folder or hub id. Blocks; raises `CheckpointError` or `ConfigError`."""
        return cls(model, config or EngineConfig(), silence)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self) -> tuple["subprocess.Popen[bytes]", Connection, EngineInfo]:
        """Start a child with the weights that were loaded last.

        Raises:
            CheckpointError, ConfigError: the child says that it cannot load the model.
            EngineError: it died or hung.
        """
        ours, theirs = socket.socketpair()
        with theirs, self._starting:
            if self._ending.is_set():
                ours.close()
                raise EngineClosed("the engine is closed")
            process = self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "drawloom.engine.hosting.process_worker",
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
            )
        connection = Connection(ours.detach())
        over = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(process, over, 12 * self._silence), daemon=True
        )
        watch.start()
        try:
            connection.send((self._model, self._config))
            info: EngineInfo = self._reply(connection, "ready")
            if self._weights is not None:
                connection.send((-1, self._weights))
                self._reply(connection, "answer")
        except BaseException as error:
            connection.close()
            process.kill()
            code = process.wait()
            if isinstance(error, EOFError | OSError):
                died = f"the engine's process ended while it started, with {code}"
                raise EngineError(died) from None
            raise
        finally:
            over.set()
        return process, connection, info

    def _reply(self, connection: Connection, word: str) -> Any:
        """Receive the first answer of a starting child, past its signs of life."""
        while True:
            message = connection.recv()
            self._heard += 1
            if message[0] == "failed":
                raise message[1]
            if message[0] == word == "answer" and message[3] is not None:
                raise message[3]
            if message[0] == word:
                return message[1]

    def _watch(
        self, process: "subprocess.Popen[bytes]", over: threading.Event, silence: float
    ) -> None:
        """Kill a child that sends nothing for so long, until `over` or it is gone.

        Silence is counted in ticks of this thread: had this process itself been held up, nothing
        would have been read, and the child would not be to blame.
        """
        heard, silent = self._heard, 0
        while not over.wait(silence / _TICKS) and process.poll() is None:
            silent = silent + 1 if self._heard == heard else 0
            heard = self._heard
            if silent >= _TICKS:
                log.error("process %d of the engine gave no sign of life; killing it", process.pid)
                process.kill()

    async def close(self) -> None:
        with self._lock:
            self._closing = True
        with self._starting:
            self._ending.set()
            process = self._process
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, _PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        await asyncio.to_thread(self._reader.join)
        await asyncio.to_thread(self._process.wait)
        self._connection.close()

    # --- to the child ---------------------------------------------------------------------

    def _send(self, number: int, command: do.Command) -> None:
        if isinstance(command, do.UpdateWeights) and command.tensors is not None:
            error = EngineError("an engine in a process takes weights from a folder")
            self._answer(number, None, error)
            return
        self._write(number, command)

    def _write(self, number: int, command: do.Command) -> None:
        try:
            with self._sending:
                self._connection.send((number, command))
        except OSError:
            log.debug("the engine's process is gone; the next one hears of it")
        except Exception as error:  # it cannot be pickled
            self._answered(number, None, EngineError(f"this cannot be sent: {error!r}"))

    # --- from the child -------------------------------------------------------------------

    def _read(self) -> None:
        over = self._watched()
        while True:
            try:
                message = self._connection.recv()
                self._heard += 1
                self._take(message)
            except Exception as error:
                if not isinstance(error, EOFError | OSError):
                    log.exception("a message of the engine's process could not be read")
                over.set()
                if self._closing or not self._restart():
                    break
                over = self._watched()
        self._end_all()
        self._call(self._told, True)

    def _watched(self) -> threading.Event:
        over = threading.Event()
        job = (self._process, over, self._silence)
        threading.Thread(target=self._watch, args=job, name="watch", daemon=True).start()
        return over

    def _take(self, message: Any) -> None:
        if message[0] == "answer":
            self._answered(*message[1:])
        elif message[0] == "deltas":
            self._deltas(message[1])

    def _answered(self, number: int, value: Any, error: Exception | None) -> None:
        with self._lock:
            command = self._answers.get(number, (None, None))[0]
            if error is None and isinstance(command, do.Submit):
                self._running.add(command.request.id)
            elif isinstance(command, do.Cancel) and value is not None:
                self._running.discard(command.request)
        if error is None and isinstance(command, do.UpdateWeights):
            self._weights = command
        self._answer(number, value, error)

    def _deltas(self, deltas: list[Delta]) -> None:
        with self._lock:
            self._running.difference_update(d.request for d in deltas if d.finish is not None)
        self._deliver(deltas)

    def _restart(self) -> bool:
        """Another child takes over; False when there can be none."""
        self._process.kill()  # it may only have stopped talking
        code = self._process.wait()
        log.warning("the process of engine %s ended with %s; starting another", self.info.id, code)
        started = self._start_again(self._lose())
        if started is None:
            return False
        with self._sending:  # what was sent meanwhile is among the unanswered, and sent again
            self._connection.close()
            self._process, self._connection, info = started
        self.info = replace(info, id=self.info.id)
        with self._lock:
            answers = {n: c for n, (c, _) in self._answers.items()}
        for number, command in answers.items():
            self._write(number, command)
        self._call(self._told, True)
        return True

    def _lose(self) -> bool:
        """Tell whoever watches, then every request that ran, that the child is gone; return
        whether there were any."""
        with self._lock:
            lost, self._running = self._running, set()
            asked = {n: c for n, (c, _) in self._answers.items() if isinstance(c, do.Submit)}
        lost.update(command.request.id for command in asked.values())
        self._call(self._told, False)
        for number in asked:
            self._answer(number, None, None)
        self._deliver([Delta(request, (), "", lost=True) for request in lost])
        return bool(lost)

    def _start_again(
        self, busy: bool
    ) -> "tuple[subprocess.Popen[bytes], Connection, EngineInfo] | None":
        """Start a child, more and more slowly while they die before they have computed anything;
        None when there can be none."""
        if busy or time.monotonic() - self._born > _LONG_LIFE:
            self._starts = 0  # one of the requests may be to blame: these are counted, too
        while True:
            self._starts += 1
            if self._starts > 1:
                self._ending.wait(_FIRST_PAUSE * 2 ** (self._starts - 2))
            try:
                started = self._start()
                self._born = time.monotonic()
                return started
            except EngineClosed:
                return None
            except (CheckpointError, ConfigError) as error:  # it would say so again
                self._failure = f": its process died and another does not start: {error}"
                return None
            except Exception as error:
                log.warning("start %d of the engine's process failed: %s", self._starts, error)
                if self._starts >= _STARTS or self._ending.is_set():
                    self._failure = (
                        f": its process died and {self._starts} others did not start: {error}"
                    )
                    return None


__all__ = ["ProcessEngine"]
