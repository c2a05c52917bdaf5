"""What the two hosts of an engine core share: streams, verbs, answers.

A host carries commands to a core that lives in a thread or in another process, and deltas back
to the event loop. It is told of everything through two methods, `_send` and `_receive`.
"""

import asyncio
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import Delta, EngineInfo, EngineStats, GenerateRequest
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import EngineClosed, EngineError
from drawloom.leases import KVReply, LeaseStatus

_DEATHS = 3


class EngineClient(ABC):
    """The `Engine` seam over a core that is elsewhere."""

    def __init__(self, info: EngineInfo, tokenizer: Tokenizer) -> None:
        self.info, self.tokenizer = info, tokenizer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, asyncio.Queue[Delta]] = {}
        self._answers: dict[int, tuple[do.Command, Future[Any]]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closing = False
        self._failure: str = ""
        self._ended: Future[EngineClosed | None] = Future()
        self._told: Callable[[bool], None] = lambda up: None

    # --- the seam -------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self._loop = asyncio.get_running_loop()
        if request.id in self._streams:
            raise EngineError(f"request {request.id} is already running")
        queue: asyncio.Queue[Delta] = asyncio.Queue()
        self._streams[request.id] = queue
        said: list[int] = []
        finished, deaths = False, 0
        try:
            await self.tell(do.Submit(request))
            while not finished:
                delta = await queue.get()
                finished = delta.finish is not None
                if delta.finish is FinishReason.ERROR:
                    raise delta.error or EngineError("the engine failed")
                said += delta.tokens
                deaths = 0 if delta.tokens else deaths + delta.lost
                if deaths > _DEATHS:
                    raise EngineError(f"the engine died {_DEATHS} times over request {request.id}")
                yield delta
                if delta.lost:
                    await self.tell(do.Submit(continued(request, said)))
        finally:
            del self._streams[request.id]
            if not finished:
                self._post(do.Cancel(request.id))

    def watch(self, told: Callable[[bool], None]) -> None:
        """Tell of each death of the core's process, and when there is an answer again: see
        `Restarting`."""
        self._loop, self._told = asyncio.get_running_loop(), told

    async def tell(self, command: do.Command) -> Any:
        """Carry out a command; its answer, or what it raises."""
        return await asyncio.wrap_future(self._post(command))

    async def lease(self, conversation: str, ttl: float, value: float) -> KVReply:
        return await self._verb(do.Lease(conversation, ttl, value))

    async def release(self, conversation: str, *, evict: bool = True) -> KVReply:
        return await self._verb(do.Release(conversation, evict))

    async def fork(self, parent: str, child: str) -> KVReply:
        return await self._verb(do.Fork(parent, child))

    async def demote(self, conversation: str) -> KVReply:
        return await self._verb(do.Demote(conversation))

    async def prefetch(self, conversation: str) -> KVReply:
        return await self._verb(do.Prefetch(conversation))

    async def _verb(self, command: do.Command) -> KVReply:
        reply: KVReply = await self.tell(command)
        return reply

    async def extend(
        self,
        conversation: str,
        tokens: tuple[int, ...],
        *,
        salt: bytes = b"",
        priority: float = 0.0,
    ) -> KVReply:
        id = f"extend:{conversation}:{next(self._numbers)}"
        params = SamplingParams(max_tokens=0)
        request = GenerateRequest(id, conversation, tokens, params, priority, salt)
        async with aclosing(self.generate(request)) as deltas:
            async for delta in deltas:
                if delta.lost:  # whoever schedules the conversation may want something else now
                    return KVReply(LeaseStatus.CLIPPED, 0)
                whole = delta.finish is FinishReason.LENGTH
        if whole:
            return KVReply(LeaseStatus.ACCEPTED, len(tokens))
        return KVReply(LeaseStatus.CLIPPED, 0)

    async def score(
        self,
        prefix: tuple[int, ...],
        continuations: list[tuple[int, ...]],
        *,
        salt: bytes = b"",
        priority: float = 0.0,
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of the tokens of each continuation behind `prefix`, which is computed
        once. Raises `EngineError` for an empty prefix: a first token follows nothing."""
        if not prefix:
            raise EngineError("score needs at least one token before what is scored")
        params = SamplingParams(max_tokens=0, score_from=len(prefix))
        number = next(self._numbers)

        async def one(index: int, tokens: tuple[int, ...]) -> tuple[float, ...]:
            if not tokens:
                return ()
            name = f"score:{self.info.id}:{number}:{index}"
            request = GenerateRequest(name, name, prefix + tokens, params, priority, salt)
            scores: tuple[float, ...] = ()
            try:
                async with aclosing(self.generate(request)) as deltas:
                    async for delta in deltas:
                        scores = delta.scores
            finally:
                await self.release(name)
            return scores

        jobs = (one(i, tokens) for i, tokens in enumerate(continuations))
        return list(await asyncio.gather(*jobs))

    async def stats(self) -> EngineStats:
        stats: EngineStats = await self.tell(do.Stats())
        return stats

    @property
    def failed(self) -> EngineClosed | None:
        """Why the engine ended by itself; None while it runs and after `close`."""
        return self._ended.result() if self._ended.done() else None

    async def ended(self) -> EngineClosed | None:
        """Wait until the engine answers nothing any more.

        Returns:
            Why it ended by itself, or None when it was closed. Whoever serves an engine that ended
            by itself should end, too, so that a supervisor starts it again.
        """
        return await asyncio.shield(asyncio.wrap_future(self._ended))

    @abstractmethod
    async def close(self) -> None: ...

    # --- both directions ------------------------------------------------------------------

    @abstractmethod
    def _send(self, number: int, command: do.Command) -> None:
        """Hand a command to the core; `_answer` and `_distribute` hear of what comes of it."""

    def _post(self, command: do.Command) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._lock:
            if self._closing:
                future.set_exception(self._closed())
                return future
            number = next(self._numbers)
            self._answers[number] = (command, future)
        self._send(number, command)
        return future

    def _answer(self, number: int, value: Any, error: BaseException | None) -> None:
        with self._lock:
            _, future = self._answers.pop(number, (None, None))
        if future is None or not future.set_running_or_notify_cancel():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def _deliver(self, deltas: list[Delta]) -> None:
        """From any thread: to the streams, on the event loop."""
        self._call(self._distribute, deltas)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """Call on the event loop; nobody listens when it is closed."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *args)

    def _distribute(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            queue = self._streams.get(delta.request)
            if queue is not None:
                queue.put_nowait(delta)

    def _closed(self) -> EngineClosed:
        return EngineClosed(f"engine {self.info.id} is closed{self._failure}")

    def _end_all(self) -> None:
        """Nothing comes any more: whoever waits hears of it."""
        with self._lock:
            self._closing = True
            numbers = list(self._answers)
        if not self._ended.done():
            self._ended.set_result(self._closed() if self._failure else None)
        for number in numbers:
            self._answer(number, None, self._closed())
        self._call(self._end_streams)

    def _end_streams(self) -> None:
        for request, queue in self._streams.items():
            end = Delta(request, (), "", finish=FinishReason.ERROR, error=self._closed())
            queue.put_nowait(end)


def continued(request: GenerateRequest, tokens: list[int]) -> GenerateRequest:
    """The rest of a request of which `tokens` were already delivered."""
    whole = (*request.tokens, *tokens)
    return replace(request, tokens=whole, resumed_tokens=request.resumed_tokens + len(tokens))


__all__ = ["EngineClient", "continued"]
