"""Client of an engine core that runs in a thread or in a child process."""

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

_MAX_DEATHS = 3


class EngineClient(ABC):
    """Implement the `Engine` seam over a core that runs elsewhere.

    Subclasses carry commands to the core in `_send`, and bring back its answers with `_answer` and
    its deltas with `_deliver`, from any thread.
    """

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
        self._on_change: Callable[[bool], None] = lambda up: None

    # --- requests -------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Stream a request; see `Engine.generate`.

        A request whose core died is submitted again when its next delta is asked for.
        """
        self._loop = asyncio.get_running_loop()
        if request.id in self._streams:
            raise EngineError(f"request {request.id} is already running")
        queue: asyncio.Queue[Delta] = asyncio.Queue()
        self._streams[request.id] = queue
        generated: list[int] = []
        finished, deaths = False, 0
        try:
            await self.tell(do.Submit(request))
            while not finished:
                delta = await queue.get()
                finished = delta.finish is not None
                if delta.finish is FinishReason.ERROR:
                    raise delta.error or EngineError("the engine failed")
                generated += delta.tokens
                deaths = 0 if delta.tokens else deaths + delta.lost
                if deaths > _MAX_DEATHS:
                    raise EngineError(
                        f"the engine died {_MAX_DEATHS} times over request {request.id}"
                    )
                yield delta
                if delta.lost:
                    await self.tell(do.Submit(continued(request, generated)))
        finally:
            del self._streams[request.id]
            if not finished:
                self._post(do.Cancel(request.id))

    async def extend(
        self,
        conversation: str,
        tokens: tuple[int, ...],
        *,
        salt: bytes = b"",
        priority: float = 0.0,
    ) -> KVReply:
        """Compute the KV of a conversation's next prompt ahead of it; see `Engine.extend`."""
        id = f"extend:{conversation}:{next(self._numbers)}"
        params = SamplingParams(max_tokens=0)
        request = GenerateRequest(id, conversation, tokens, params, priority, salt)
        async with aclosing(self.generate(request)) as deltas:
            async for delta in deltas:
                if delta.lost:  # the scheduler of the conversation may want something else now
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
        """Return the log-probabilities of the tokens of several continuations of a prefix.

        The prefix is computed once.

        Raises:
            EngineError: if the prefix is empty, because no token precedes the first one.
        """
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

    # --- commands -------------------------------------------------------------------------

    async def tell(self, command: do.Command) -> Any:
        """Have the core carry out a command; return its answer, or raise its exception."""
        return await asyncio.wrap_future(self._post(command))

    async def lease(self, conversation: str, ttl: float, value: float) -> KVReply:
        """Lease a conversation's KV; see `Engine.lease`."""
        return await self._tell_kv(do.Lease(conversation, ttl, value))

    async def release(self, conversation: str, *, evict: bool = True) -> KVReply:
        """End a conversation; see `Engine.release`."""
        return await self._tell_kv(do.Release(conversation, evict))

    async def fork(self, parent: str, child: str) -> KVReply:
        """Begin a conversation as a copy of another; see `Engine.fork`."""
        return await self._tell_kv(do.Fork(parent, child))

    async def demote(self, conversation: str) -> KVReply:
        """Move a conversation's KV to host memory; see `Engine.demote`."""
        return await self._tell_kv(do.Demote(conversation))

    async def prefetch(self, conversation: str) -> KVReply:
        """Load a conversation's KV from host memory; see `Engine.prefetch`."""
        return await self._tell_kv(do.Prefetch(conversation))

    async def _tell_kv(self, command: do.Command) -> KVReply:
        reply: KVReply = await self.tell(command)
        return reply

    async def stats(self) -> EngineStats:
        """Return the present statistics."""
        stats: EngineStats = await self.tell(do.Stats())
        return stats

    # --- end ------------------------------------------------------------------------------

    def watch(self, on_change: Callable[[bool], None]) -> None:
        """Report each death of the core's process and its end; see `Restarting.watch`."""
        self._loop, self._on_change = asyncio.get_running_loop(), on_change

    @property
    def failed(self) -> EngineClosed | None:
        """Return why the engine ended by itself; None while it runs and after `close`."""
        return self._ended.result() if self._ended.done() else None

    async def ended(self) -> EngineClosed | None:
        """Wait until the engine has ended.

        Returns:
            Why it ended by itself, or None if it was closed. A server of an engine that ended by
            itself should end, too, so that a supervisor starts it again.
        """
        return await asyncio.shield(asyncio.wrap_future(self._ended))

    @abstractmethod
    async def close(self) -> None:
        """End the core; requests that run raise `EngineClosed`."""

    # --- transport ------------------------------------------------------------------------

    @abstractmethod
    def _send(self, number: int, command: do.Command) -> None:
        """Hand a command to the core, whose result must reach `_answer` with this number."""

    def _post(self, command: do.Command) -> "Future[Any]":
        """Send a command; return the future of its answer."""
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
        """Resolve the future of a command, from any thread."""
        with self._lock:
            _, future = self._answers.pop(number, (None, None))
        if future is None or not future.set_running_or_notify_cancel():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def _deliver(self, deltas: list[Delta]) -> None:
        """Hand deltas to the streams of their requests, from any thread."""
        self._call(self._distribute, deltas)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function on the event loop; do nothing if that is closed."""
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
        """End the client: every command and stream that waits raises `EngineClosed`."""
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
    """Return the rest of a request of which `tokens` were already delivered."""
    return replace(
        request,
        tokens=(*request.tokens, *tokens),
        resumed_tokens=request.resumed_tokens + len(tokens),
    )


__all__ = ["EngineClient", "continued"]
