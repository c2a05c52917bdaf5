"""The engine in a thread of this process.

One thread owns the core; the event loop sends it commands over a queue and is woken once a step
with all deltas of that step. The CPU's wait policy is set here, before torch starts its threads.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

# spinning OpenMP threads cost 4-100x when another process wants the core (engines.md §4.4)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from drawloom.engine.base import Delta, EngineInfo, EngineStats, GenerateRequest
from drawloom.engine.config import EngineConfig
from drawloom.engine.core import EngineCore
from drawloom.engine.sequence import FinishReason
from drawloom.engine.tokenizer import Tokenizer
from drawloom.errors import EngineClosed, EngineError
from drawloom.leases import KVReply

T = TypeVar("T")


class LocalEngine:
    """`EngineCore` behind the `Engine` seam. Make one with `LocalEngine.load`, close it after."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._failure: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, asyncio.Queue[Delta]] = {}
        self._thread = threading.Thread(target=self._run, name=core.info.id, daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, model: str, config: EngineConfig | None = None) -> "LocalEngine":
        """Load a model folder or hub id. Blocks; raises `CheckpointError` or `ConfigError`."""
        return cls(EngineCore.load(model, config or EngineConfig()))

    @property
    def info(self) -> EngineInfo:
        return self._core.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._core.tokenizer

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Delta] = asyncio.Queue()
        self._streams[request.id] = queue
        finished = False
        try:
            await self._ask(lambda: self._core.submit(request))
            while not finished:
                delta = await queue.get()
                finished = delta.finish is not None
                if delta.finish is FinishReason.ERROR:
                    raise delta.error or EngineError("the engine failed")
                yield delta
        finally:
            del self._streams[request.id]
            if not finished:
                self._post(lambda: self._core.cancel(request.id))

    async def lease(self, lineage: str, ttl: float, value: float) -> KVReply:
        return await self._ask(lambda: self._core.lease(lineage, ttl, value))

    async def release(self, lineage: str, *, evict: bool = True) -> KVReply:
        return await self._ask(lambda: self._core.release(lineage, evict))

    async def fork(self, parent: str, child: str) -> KVReply:
        return await self._ask(lambda: self._core.fork(parent, child))

    async def stats(self) -> EngineStats:
        return await self._ask(self._core.stats)

    async def close(self) -> None:
        self._closing = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    # --- the two sides --------------------------------------------------------------------

    def _post(self, command: Callable[[], Any]) -> None:
        self._commands.append(command)
        self._wake.set()

    async def _ask(self, command: Callable[[], T]) -> T:
        if self._closing or not self._thread.is_alive():
            raise EngineClosed(f"engine {self.info.id} is closed" + self._why())
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(command())
            except Exception as error:
                answer.set_exception(error)

        self._post(run)
        return await asyncio.wrap_future(answer)

    def _why(self) -> str:
        return f" after a failure: {self._failure!r}" if self._failure else ""

    def _run(self) -> None:
        try:
            while not self._closing:
                self._obey()
                deltas = self._core.step()
                if deltas:
                    self._send(deltas)
                elif not self._core.busy and not self._commands:
                    self._wake.wait()
                    self._wake.clear()
        except Exception as error:  # a bug in the core: every request must hear of it
            self._failure = error
        finally:
            self._closing = True
            self._obey()
            self._end_all()

    def _obey(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _send(self, deltas: list[Delta]) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._distribute, deltas)

    def _distribute(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            queue = self._streams.get(delta.request)
            if queue is not None:
                queue.put_nowait(delta)

    def _end_all(self) -> None:
        error = EngineClosed(f"engine {self.info.id} was closed" + self._why())
        requests = [seq.id for seq in self._core.batch.sequences]
        for request in requests:
            self._core.cancel(request)
        self._send([Delta(r, (), "", (), FinishReason.ERROR, None, error) for r in requests])


__all__ = ["LocalEngine"]
