"""Engine in a child process, whose crash fails no program.

When the child dies another is started. Every request that ran there gets a delta that is `lost`,
and continues behind the tokens that were already delivered when its next delta is asked for:
sampling noise is a function of seed, conversation and position, so its answer is the same. Its KV
is computed again; leases are gone and answered as missing. A scheduler that watches (`watch`) is
told of the death first, and may ask for the next deltas in its own order.

A child that hangs is killed and replaced like one that died: it sends a heartbeat every second from
a thread of its own (`process_worker`), so that neither a slow step nor loading a model counts as
silence. A child that dies while it starts is retried with growing pauses; at last the engine
closes, and `EngineClient.ended` returns the reason.
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
from drawloom.engine.api.engine import Delta, EngineInfo, EngineStats
from drawloom.engine.config import EngineConfig
from drawloom.engine.hosting.client import EngineClient
from drawloom.engine.models.checkpoint import resolve
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import CheckpointError, ConfigError, EngineClosed, EngineError

log = logging.getLogger("drawloom.engine")

_SILENCE_SECONDS = 10.0
_SILENCE_CHECKS = 8
_MAX_STARTS = 6
_FIRST_PAUSE_SECONDS = 0.25
_LONG_LIFE_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_STATS_SECONDS = 2.0


class ProcessEngine(EngineClient):
    """Run an `EngineCore` in a child process. Make one with `load`, and close it.

    Args:
        silence: seconds without a heartbeat after which a child counts as hung; twelve times as
            many while it starts (importing torch from a cold disk holds up all its threads).
    """

    def __init__(self, model: str, config: EngineConfig, silence: float = _SILENCE_SECONDS) -> None:
        folder = resolve(model)
        self._model, self._config, self._silence = str(folder), config, silence
        self._starting = threading.Lock()
        self._ending = threading.Event()
        self._messages = 0
        self._weights: do.UpdateWeights | None = None
        self._process, self._connection, info = self._start()
        super().__init__(info, Tokenizer.load(Path(folder)))
        self._running: set[str] = set()
        self._starts, self._started_at = 0, time.monotonic()
        self._restarting = False
        self._last_stats = EngineStats()
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"{info.id}-reader", daemon=True)
        self._reader.start()

    @classmethod
    def load(
        cls, model: str, config: EngineConfig | None = None, silence: float = _SILENCE_SECONDS
    ) -> "ProcessEngine":
        """Load a model, blocking, and start its engine.

        Args:
            model: folder, or id on the hub.
            silence: seconds without a heartbeat after which a child counts as hung.

        Raises:
            CheckpointError: if the model cannot be read.
            ConfigError: if the configuration does not fit it.
        """
        return cls(model, config or EngineConfig(), silence)

    @property
    def pid(self) -> int:
        """Return the process id of the present child."""
        return self._process.pid

    async def stats(self) -> EngineStats:
        """Return the present statistics, or the last known ones if the child cannot answer now.

        While another child starts, they are returned at once, and are marked as `restarting`.
        """
        if self._restarting and not self._closing:
            return self._stale_stats()
        answer = asyncio.wrap_future(self._post(do.Stats()))
        try:
            return await asyncio.wait_for(answer, _STATS_SECONDS)
        except TimeoutError:
            return self._last_stats

    def _stale_stats(self) -> EngineStats:
        return replace(self._last_stats, restarting=True)

    async def close(self) -> None:
        """End the child; requests that run raise `EngineClosed`."""
        with self._lock:
            self._closing = True
        with self._starting:
            self._ending.set()
            process = self._process
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, _CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        await asyncio.to_thread(self._reader.join)
        await asyncio.to_thread(self._process.wait)
        self._connection.close()

    # --- start ----------------------------------------------------------------------------

    def _start(self) -> tuple["subprocess.Popen[bytes]", Connection, EngineInfo]:
        """Start a child with the weights that were loaded last.

        Raises:
            CheckpointError, ConfigError: if the child cannot load the model.
            EngineError: if it died or hung.
            EngineClosed: if the engine was closed meanwhile.
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
            target=self._kill_when_silent, args=(process, over, 12 * self._silence), daemon=True
        )
        watch.start()
        try:
            connection.send((self._model, self._config))
            info: EngineInfo = self._first_answer(connection, "ready")
            if self._weights is not None:
                connection.send((-1, self._weights))
                self._first_answer(connection, "answer")
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

    def _first_answer(self, connection: Connection, word: str) -> Any:
        """Receive the first answer of a starting child, skipping its heartbeats."""
        while True:
            message = connection.recv()
            self._messages += 1
            if message[0] == "failed":
                raise message[1]
            if message[0] == word == "answer" and message[3] is not None:
                raise message[3]
            if message[0] == word:
                return message[1]

    def _kill_when_silent(
        self, process: "subprocess.Popen[bytes]", over: threading.Event, silence: float
    ) -> None:
        """Kill a child that sends nothing for `silence` seconds, until `over` or it is gone.

        Silence is counted in ticks of this thread: had this process itself been held up, nothing
        would have been read, and the child would not be to blame.
        """
        seen, silent = self._messages, 0
        while not over.wait(silence / _SILENCE_CHECKS) and process.poll() is None:
            silent = silent + 1 if self._messages == seen else 0
            seen = self._messages
            if silent >= _SILENCE_CHECKS:
                log.error("process %d of the engine sent no heartbeat; killing it", process.pid)
                process.kill()

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
            log.debug("the engine's process is gone; the next one gets the command")
        except Exception as error:  # it cannot be pickled
            self._book_answer(number, None, EngineError(f"this cannot be sent: {error!r}"))

    # --- from the child -------------------------------------------------------------------

    def _read(self) -> None:
        over = self._start_watch()
        while True:
            try:
                message = self._connection.recv()
                self._messages += 1
                self._receive(message)
            except Exception as error:
                if not isinstance(error, EOFError | OSError):
                    log.exception("a message of the engine's process could not be read")
                over.set()
                if self._closing or not self._restart():
                    break
                over = self._start_watch()
        self._end_all()
        self._call(self._on_change, True)

    def _start_watch(self) -> threading.Event:
        over = threading.Event()
        job = (self._process, over, self._silence)
        threading.Thread(target=self._kill_when_silent, args=job, name="watch", daemon=True).start()
        return over

    def _receive(self, message: Any) -> None:
        match message:
            case ("answer", number, value, error):
                self._book_answer(number, value, error)
            case ("deltas", deltas):
                self._book_deltas(deltas)

    def _book_answer(self, number: int, value: Any, error: Exception | None) -> None:
        with self._lock:
            command = self._answers.get(number, (None, None))[0]
            if error is None and isinstance(command, do.Submit):
                self._running.add(command.request.id)
            elif isinstance(command, do.Cancel) and value is not None:
                self._running.discard(command.request)
        if error is None and isinstance(command, do.UpdateWeights):
            self._weights = command
        elif isinstance(value, EngineStats):
            self._last_stats = value
        self._answer(number, value, error)

    def _book_deltas(self, deltas: list[Delta]) -> None:
        with self._lock:
            self._running.difference_update(d.request for d in deltas if d.finish is not None)
        self._deliver(deltas)

    # --- restart --------------------------------------------------------------------------

    def _restart(self) -> bool:
        """Replace the child; return False if that is impossible."""
        self._restarting = True
        self._process.kill()  # it may only have stopped talking
        code = self._process.wait()
        log.warning("the process of engine %s ended with %s; starting another", self.info.id, code)
        started = self._start_again(self._report_death())
        if started is None:
            return False
        with self._sending:  # commands sent meanwhile are unanswered, and sent again
            self._connection.close()
            self._process, self._connection, info = started
        self.info = replace(info, id=self.info.id)
        with self._lock:
            answers = {n: c for n, (c, _) in self._answers.items()}
        for number, command in answers.items():
            self._write(number, command)
        self._restarting = False
        self._call(self._on_change, True)
        return True

    def _report_death(self) -> bool:
        """Report the death to the watcher, then to each request; return whether any ran."""
        with self._lock:
            lost, self._running = self._running, set()
            commands = {n: c for n, (c, _) in self._answers.items()}
        submitted = {n: c for n, c in commands.items() if isinstance(c, do.Submit)}
        lost.update(command.request.id for command in submitted.values())
        self._call(self._on_change, False)
        for number, command in commands.items():
            if isinstance(command, do.Stats):
                self._answer(number, self._stale_stats(), None)
        for number in submitted:
            self._answer(number, None, None)
        self._deliver([Delta(request, (), "", lost=True) for request in lost])
        return bool(lost)

    def _start_again(
        self, busy: bool
    ) -> "tuple[subprocess.Popen[bytes], Connection, EngineInfo] | None":
        """Start a child, with growing pauses while they die before they have computed anything.

        Args:
            busy: requests ran in the last child.

        Returns:
            What `_start` returns, or None if no child can be started.
        """
        if busy or time.monotonic() - self._started_at > _LONG_LIFE_SECONDS:
            self._starts = 0  # one of the requests may be to blame: their deaths are counted, too
        while True:
            self._starts += 1
            if self._starts > 1:
                self._ending.wait(_FIRST_PAUSE_SECONDS * 2 ** (self._starts - 2))
            try:
                started = self._start()
                self._started_at = time.monotonic()
                return started
            except EngineClosed:
                return None
            except (CheckpointError, ConfigError) as error:  # the next child would fail alike
                self._failure = f": its process died and another does not start: {error}"
                return None
            except Exception as error:
                log.warning("start %d of the engine's process failed: %s", self._starts, error)
                if self._starts >= _MAX_STARTS or self._ending.is_set():
                    self._failure = (
                        f": its process died and {self._starts} others did not start: {error}"
                    )
                    return None


__all__ = ["ProcessEngine"]
