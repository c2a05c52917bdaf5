"""The HTTP application: routes, and the life of one request."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from drawloom.engine.api.engine import RequestUsage
from drawloom.errors import DrawloomError, EngineClosed
from drawloom.ids import new_id
from drawloom.runtime.server import openapi
from drawloom.runtime.server.access_log import RECORD, AccessLog, RequestRecord
from drawloom.runtime.server.chat_completions import ChatStep
from drawloom.runtime.server.completions import CompletionStep
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.drain import Drain, shutting_down
from drawloom.runtime.server.errors import HttpError, parse, wire_error
from drawloom.runtime.server.event_stream import (
    EventStream,
    disconnected,
    encode_events,
    unexpected,
)
from drawloom.runtime.server.metrics import Timings, render
from drawloom.runtime.server.names import header_name, header_value, program_name
from drawloom.runtime.server.openai_encoding import JsonObject
from drawloom.runtime.server.openai_requests import (
    ChatRequest,
    CompletionRequest,
    ReleaseRequest,
    Sampling,
)
from drawloom.runtime.server.served_runtime import ServedRuntime
from drawloom.runtime.server.serving_context import ServingContext
from drawloom.runtime.server.sessions import SessionTable

_MAX_BODY_BYTES = 16 << 20
_PART_SECONDS, _BODY_SECONDS = 20.0, 300.0
"""Longest pause within a body, and longest time for all of it."""
_FIRST_CHUNK_SECONDS = 5.0
"""Time in which a stream may still fail as a plain error; later errors are events."""
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
S = TypeVar("S", bound=Sampling)


class _Step(Protocol):
    """Generate an answer, whole or in chunks."""

    @property
    def program(self) -> str: ...

    async def whole(self) -> JsonObject: ...

    def chunks(self) -> AsyncGenerator[JsonObject, None]: ...

    def usages(self) -> list[RequestUsage]: ...


class Server:
    """Serve an open runtime over HTTP.

    Attributes:
        app: the ASGI application; it checks neither keys nor Host headers (see `access.Guard`).
        drain: ends running requests when the server stops.
        sessions: the programs and conversations of its clients.
    """

    def __init__(
        self,
        runtime: ServedRuntime,
        *,
        name: str = "",
        reasoning: bool = False,
        trust_priority: bool = False,
        ttl: float = 300.0,
    ) -> None:
        """
        Args:
            runtime: an open runtime.
            name: the model's name for clients; by default the last part of its path.
            reasoning: the model's answers begin with reasoning.
            trust_priority: use the priority that a request asks for.
            ttl: seconds for which an idle named program is kept.
        """
        dispatcher = runtime.dispatcher
        info = dispatcher.engine.info
        info = replace(info, model=name or Path(info.model).name)
        self.dispatcher, self.info = dispatcher, info
        self._trust_priority = trust_priority
        self.sessions = SessionTable(dispatcher, ttl)
        self.timings = Timings(info)
        self.context = ServingContext(
            model=info.model,
            template=runtime.template,
            tokenizer=dispatcher.engine.tokenizer,
            sessions=self.sessions,
            timings=self.timings,
            max_context=info.max_context,
            reasoning=reasoning,
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
            DrawloomError: _refused,
            HTTPException: _no_such_page,
            Exception: _broken,
        }
        self.drain = Drain(Starlette(routes=routes, exception_handlers=handlers))
        self.app = AccessLog(self.drain)

    async def close(self) -> None:
        """End all programs of clients."""
        await self.sessions.close()

    async def stop(self, seconds: float) -> bool:
        """Refuse new and waiting requests; let running ones go on for some time, then end them.

        Args:
            seconds: time for running requests.

        Returns:
            True if all of them completed in time.
        """
        self.dispatcher.drain(shutting_down)
        return await self.drain.drain(seconds)

    # --- completions ----------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        body = self._without_priority(await _read(request, ChatRequest))
        step = ChatStep.open(self.context, body, _caller(request, body))
        return await self._answer(request, step, bool(body.stream))

    async def _completion(self, request: Request) -> Response:
        body = self._without_priority(await _read(request, CompletionRequest))
        step = CompletionStep.open(self.context, body, _caller(request, body))
        return await self._answer(request, step, bool(body.stream))

    def _without_priority(self, body: S) -> S:
        if not self._trust_priority:
            body.priority = 0
        return body

    async def _answer(
        self, request: Request, opening: AbstractAsyncContextManager[_Step], stream: bool
    ) -> Response:
        """Open a step and answer with its result, as one object or as a stream.

        A stream that fails within `_FIRST_CHUNK_SECONDS` is answered with a plain error.
        """
        async with AsyncExitStack() as stack:
            step = await stack.enter_async_context(opening)
            record: RequestRecord = request.scope[RECORD]
            record.program = step.program
            headers = {"x-request-id": new_id("req"), "x-program-id": header_value(step.program)}
            if not stream:
                answer = await self._unless_gone(request, step.whole())
                record.usages = step.usages()
                return JSONResponse(answer, headers=headers)
            headers["cache-control"] = "no-cache"
            chunks = step.chunks()
            first: asyncio.Future[JsonObject | None] = asyncio.ensure_future(anext(chunks, None))

            async def stop() -> None:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                await chunks.aclose()
                record.usages = step.usages()

            stack.push_async_callback(stop)
            await self._unless_gone(request, asyncio.wait({first}, timeout=_FIRST_CHUNK_SECONDS))
            if first.done():
                first.result()
            events = encode_events(first, chunks, self.drain.cut)
            return EventStream(events, headers, stack.pop_all().aclose)

    async def _unless_gone(self, request: Request, work: Awaitable[T]) -> T:
        """Await some work; cancel it when the client disconnects or the server ends."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(disconnected(request))
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

    # --- everything else ------------------------------------------------------------------

    def _describe_model(self) -> JsonObject:
        return {
            "id": self.context.model,
            "object": "model",
            "owned_by": "drawloom",
            "created": 0,
            "max_model_len": self.info.max_context,
        }

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe_model()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["id"] != self.context.model:
            raise HttpError(404, f"only {self.context.model!r} is served", code="model_not_found")
        return JSONResponse(self._describe_model())

    async def _release(self, request: Request) -> Response:
        body = await _read(request, ReleaseRequest)
        return self._end_program(request, body.program_id)

    async def _delete(self, request: Request) -> Response:
        name = program_name(request.path_params["id"], "program_id")
        return self._end_program(request, name or "")

    def _end_program(self, request: Request, name: str) -> Response:
        found = self.sessions.release(Caller(_tenant(request), name))
        return JSONResponse({"program_id": name, "released": found}, 200 if found else 404)

    async def _list(self, request: Request) -> Response:
        tenant = request.query_params.get("tenant")
        found = [p for p in self.sessions.describe() if tenant in (None, p["tenant"])]
        return JSONResponse({"object": "list", "data": found})

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
    """Read a request's body as a model.

    Raises:
        HttpError: the body is too large, arrives too slowly, or has a wrong field.
    """
    body = bytearray()
    clock = asyncio.get_running_loop().time
    deadline = clock() + _BODY_SECONDS
    try:
        # a client that stops sending would otherwise hold its connection for ever
        async with asyncio.timeout(_PART_SECONDS) as limit:
            async for part in request.stream():
                body += part
                if len(body) > _MAX_BODY_BYTES:
                    raise HttpError(413, f"a request has at most {_MAX_BODY_BYTES >> 20} MiB")
                limit.reschedule(min(deadline, clock() + _PART_SECONDS))
    except TimeoutError:
        raise HttpError(408, "the body did not arrive in time") from None
    return parse(kind, bytes(body))


def _tenant(request: Request) -> str:
    return header_name(request, "x-tenant") or "default"


def _caller(request: Request, body: Sampling) -> Caller:
    """Return the tenant and the program that a request names.

    A request from inside an environment belongs to the program that holds the environment,
    whatever it names. Otherwise the body comes before the headers.
    """
    inside: Caller | None = request.scope.get("drawloom.caller")
    if inside is not None:
        return inside
    metadata = body.metadata or {}
    name = (
        body.program_id
        or body.session_id
        or program_name(metadata.get("program_id"), "metadata.program_id")
        or header_name(request, "x-program-id")
        or header_name(request, "x-session-id")
        or body.prompt_cache_key
    )
    return Caller(header_name(request, "x-tenant") or body.user or "default", name or None)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, DrawloomError)
    wire = wire_error(error)
    return JSONResponse(wire.body, wire.status, headers={"x-request-id": new_id("req")})


async def _no_such_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    message = f"there is no {path}" if error.status_code == 404 else f"{path} takes no {method}"
    code = "unknown_url" if error.status_code == 404 else "method_not_allowed"
    body = HttpError(error.status_code, message, code=code).body
    return JSONResponse(body, error.status_code, headers=error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse(unexpected(error).body, 500)


__all__ = ["Server"]
