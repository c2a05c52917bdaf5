"""The server: routes, errors, streams."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from drawloom.engine.api.engine import RequestUsage
from drawloom.errors import DrawloomError, EngineClosed
from drawloom.ids import new_id
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.runtime.server import openapi
from drawloom.runtime.server.access_log import RECORD, AccessLog, Record
from drawloom.runtime.server.chat_completions import ChatCompletion, Event, ServingContext
from drawloom.runtime.server.completions import Completion
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.drain import Drain, shutting_down
from drawloom.runtime.server.errors import HttpError, parse, wire_error
from drawloom.runtime.server.metrics import Timings, render
from drawloom.runtime.server.names import header_name, header_value, program_name
from drawloom.runtime.server.openai_requests import (
    ChatRequest,
    CompletionRequest,
    ReleaseRequest,
    Sampling,
)
from drawloom.runtime.server.sessions import SessionTable

log = logging.getLogger("drawloom.server")

_MOST_BYTES = 16 << 20
_WAITING_SECONDS, _PATIENCE = 15.0, 5.0
_PART_SECONDS, _BODY_SECONDS = 20.0, 300.0
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
S = TypeVar("S", bound=Sampling)


class _Job(Protocol):
    async def whole(self) -> Event: ...

    def chunks(self) -> AsyncGenerator[Event, None]: ...

    def usages(self) -> list[RequestUsage]: ...


class Server:
    """An open runtime over HTTP.

    Attributes:
        app: the ASGI application; it checks no key and no Host header (see `access.Guard`).
        drain: ends what runs when the server stops.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        name: str = "",
        reasoning: bool = False,
        trust_priority: bool = False,
        ttl: float = 300.0,
    ) -> None:
        """
        Args:
            runtime: an open runtime.
            name: how the model is called on the wire; by default as it is loaded.
            reasoning: the model writes its thought first.
            trust_priority: believe the priority that a request gives itself.
            ttl: seconds for which a silent named program is kept.
        """
        dispatcher = runtime.dispatcher
        info = replace(
            dispatcher.engine.info, model=name or Path(dispatcher.engine.info.model).name
        )
        self.dispatcher, self.info = dispatcher, info
        self._trust_priority = trust_priority
        self.sessions = SessionTable(dispatcher, ttl)
        self.timings = Timings(info)
        self.context = ServingContext(
            info.model,
            runtime.template,
            dispatcher.engine.tokenizer,
            self.sessions,
            self.timings,
            info.max_context,
            reasoning,
        )
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completion, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{id:path}", self._model),
            Route("/programs/release", self._release, methods=["POST"]),
            Route("/v1/programs", self._list),
            Route("/v1/programs/{id:path}", self._delete, methods=["DELETE"]),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            *openapi.routes(),
        ]
        handlers: dict[Any, Any] = {
            DrawloomError: _refused, HTTPException: _no_such_page, Exception: _broken
        }  # fmt: skip
        self.drain = Drain(Starlette(routes=routes, exception_handlers=handlers))
        self.app = AccessLog(self.drain)

    async def close(self) -> None:
        await self.sessions.close()

    # --- completions ----------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        asked = self._polite(await _read(request, ChatRequest))
        job = await ChatCompletion.create(self.context, asked, _identity(request, asked))
        return await self._answer(request, job, bool(asked.stream), job.program)

    async def _completion(self, request: Request) -> Response:
        asked = self._polite(await _read(request, CompletionRequest))
        caller = _identity(request, asked)
        job = await Completion.create(self.context, asked, caller)
        return await self._answer(request, job, bool(asked.stream), caller.name or "")

    def _polite(self, asked: S) -> S:
        """Leave the order to the scheduler unless requests are trusted to know their rank."""
        if not self._trust_priority:
            asked.priority = 0
        return asked

    async def _answer(self, request: Request, job: _Job, stream: bool, program: str) -> Response:
        headers = {"x-request-id": new_id("req"), "x-program-id": header_value(program)}
        record: Record = request.scope[RECORD]
        record.program = program
        if not stream:
            answer = await self._unless_gone(request, job.whole())
            record.usages = job.usages()
            return JSONResponse(answer, headers=headers)
        headers["cache-control"] = "no-cache"
        chunks = job.chunks()
        first: asyncio.Future[Event | None] = asyncio.ensure_future(anext(chunks, None))

        async def stop() -> None:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await chunks.aclose()

        try:  # what cannot begin is a plain error, not a stream; who is held gets comments
            await self._unless_gone(request, asyncio.wait({first}, timeout=_PATIENCE))
            if first.done():
                first.result()
        except BaseException:
            await stop()
            raise
        return _EventStream(self._events(first, chunks, job, record), headers, stop)

    async def stop(self, seconds: float) -> bool:
        """Refuse new requests and those whose calls wait for the scheduler; let the calls that run
        go on for `seconds`, then end them with an error.

        Returns:
            Whether all of them ended by themselves.
        """
        self.dispatcher.drain(shutting_down)
        return await self.drain.drain(seconds)

    async def _unless_gone(self, request: Request, work: Awaitable[T]) -> T:
        """Await some work; a client that leaves, or the end of the server, ends it at once."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        cut = asyncio.ensure_future(self.drain.cut.wait())
        jobs: tuple[asyncio.Future[Any], ...] = (task, gone, cut)
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise shutting_down() if cut.done() else HttpError(499, "the client has gone")
            result: T = task.result()
            return result
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _events(
        self,
        task: "asyncio.Future[Event | None]",
        chunks: AsyncGenerator[Event, None],
        job: _Job,
        record: Record,
    ) -> AsyncGenerator[str, None]:
        """Encode chunks as server-sent events. A comment now and then keeps the client's read
        timeout away; an error, or the end of the server, is the last event."""
        cut = asyncio.ensure_future(self.drain.cut.wait())
        try:
            while True:
                while not task.done() and not cut.done():
                    ends: tuple[asyncio.Future[Any], ...] = (task, cut)
                    done, _ = await asyncio.wait(
                        ends, timeout=_WAITING_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not done:
                        yield ": waiting\n\n"
                if not task.done():
                    raise shutting_down()
                chunk = task.result()
                if chunk is None:
                    yield "data: [DONE]\n\n"
                    return
                yield f"data: {json.dumps(chunk)}\n\n"
                task = asyncio.ensure_future(anext(chunks, None))
        except DrawloomError as error:
            yield f"data: {json.dumps(wire_error(error).body)}\n\n"
        except Exception as error:
            yield f"data: {json.dumps(_unexpected(error).body)}\n\n"
        finally:
            record.usages = job.usages()
            for waiting in (task, cut):
                waiting.cancel()
            await asyncio.gather(task, cut, return_exceptions=True)
            await chunks.aclose()

    # --- everything else ------------------------------------------------------------------

    def _about(self) -> Event:
        about = {"id": self.context.model, "object": "model", "owned_by": "drawloom"}
        return about | {"created": 0, "max_model_len": self.info.max_context}

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._about()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["id"] != self.context.model:
            raise HttpError(404, f"only {self.context.model!r} is context", code="model_not_found")
        return JSONResponse(self._about())

    async def _release(self, request: Request) -> Response:
        asked = await _read(request, ReleaseRequest)
        return self._ended(request, asked.program_id)

    async def _delete(self, request: Request) -> Response:
        name = program_name(request.path_params["id"], "program_id")
        return self._ended(request, name or "")

    async def _list(self, request: Request) -> Response:
        """List the programs that the server knows, those of one tenant if it is named."""
        tenant = request.query_params.get("tenant")
        found = [p for p in self.sessions.describe() if tenant in (None, p["tenant"])]
        return JSONResponse({"object": "list", "data": found})

    def _ended(self, request: Request, name: str) -> Response:
        found = self.sessions.release(Caller(_tenant(request), name))
        return JSONResponse({"program_id": name, "released": found}, 200 if found else 404)

    async def _health(self, request: Request) -> Response:
        if self.drain.draining:
            return JSONResponse({"status": "draining"}, 503)
        try:
            stats = await self.dispatcher.engine.stats()
        except EngineClosed as error:
            return JSONResponse({"status": "failed", "error": str(error)}, 503)
        status = "restarting" if stats.restarting else "asleep" if stats.asleep else "ok"
        return JSONResponse({"status": status})

    async def _metrics(self, request: Request) -> Response:
        stats = await self.dispatcher.engine.stats()
        page = render(self.timings, self.info, stats, len(self.sessions))
        return Response(page, media_type="text/plain; version=0.0.4")


async def _read(request: Request, kind: type[M]) -> M:
    """A body as a model. Raises `HttpError` with the field that is wrong."""
    body = bytearray()
    clock = asyncio.get_running_loop().time
    deadline = clock() + _BODY_SECONDS
    try:
        # whoever sends nothing for a while would hold a connection for nothing
        async with asyncio.timeout(_PART_SECONDS) as limit:
            async for part in request.stream():
                body += part
                if len(body) > _MOST_BYTES:
                    raise HttpError(413, f"a request has at most {_MOST_BYTES >> 20} MiB")
                limit.reschedule(min(deadline, clock() + _PART_SECONDS))
    except TimeoutError:
        raise HttpError(408, "the body did not arrive in time") from None
    return parse(kind, bytes(body))


def _tenant(request: Request) -> str:
    return header_name(request, "x-tenant") or "default"


def _identity(request: Request, asked: Sampling) -> Caller:
    """Return who asks: tenant and program, in the order of research/sdk.md §4; from inside an
    environment the program that has it, whatever the request says."""
    inside: Caller | None = request.scope.get("drawloom.caller")
    if inside is not None:
        return inside
    about = asked.metadata or {}
    name = (
        asked.program_id
        or asked.session_id
        or program_name(about.get("program_id"), "metadata.program_id")
        or header_name(request, "x-program-id")
        or header_name(request, "x-session-id")
        or asked.prompt_cache_key
    )
    return Caller(header_name(request, "x-tenant") or asked.user or "default", name or None)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(Response):
    """Server-sent events. A client that leaves, even one that waits, ends what makes them.

    Args:
        stop: ends what makes them where the events were never begun, so could not end it.
    """

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        headers: dict[str, str],
        stop: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._made, self._stop = events, stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_disconnected(Request(scope, receive)))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await self._made.aclose()
            await self._stop()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for event in self._made:
            body = {"type": "http.response.body", "body": event.encode(), "more_body": True}
            await send(body)
        await send({"type": "http.response.body", "body": b""})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, DrawloomError)
    wire = wire_error(error)
    return JSONResponse(wire.body, wire.status, headers={"x-request-id": new_id("req")})


async def _no_such_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    words = f"there is no {path}" if error.status_code == 404 else f"{path} takes no {method}"
    code = "unknown_url" if error.status_code == 404 else "method_not_allowed"
    body = HttpError(error.status_code, words, code=code).body
    return JSONResponse(body, error.status_code, headers=error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse(_unexpected(error).body, 500)


def _unexpected(error: Exception) -> HttpError:
    log.error("a request failed", exc_info=error)
    return HttpError(500, "this is a bug in drawloom; see its log")


__all__ = ["Server"]
