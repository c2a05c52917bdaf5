"""A pause/resume proxy in front of one server, like ThunderAgent: `python -m …rivals.proxy`.

A request of a program that `Pausing` holds waits here; all others go on as they came, less their
`program_id`. It neither knows nor touches the server's KV cache.
"""

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from drawloom.runtime.bench.rivals.pausing import LONGEST, TICK, Pausing

_CALL = 900.0  # seconds that the server may take, as in ThunderAgent
_ALONE = "default"  # the program of requests that name none


class Proxy:
    """Holds requests as `pausing` decides, and passes on the others.

    Args:
        upstream: URL of the server.
        pausing: what decides.
        tick: seconds between two decisions.
        transport: how the server is reached, where that is not TCP.
    """

    def __init__(
        self,
        upstream: str,
        pausing: Pausing,
        tick: float = TICK,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.pausing, self._upstream, self._tick = pausing, upstream.rstrip("/"), tick
        self._turns: dict[str, asyncio.Event] = {}
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)  # servers close after 5
        self._client = httpx.AsyncClient(timeout=_CALL, limits=limits, transport=transport)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/programs/release", self._release, methods=["POST"]),
                Route("/health", self._health),
            ],
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        ticking = asyncio.create_task(self._forever())
        try:
            yield
        finally:
            ticking.cancel()
            await self._client.aclose()

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(self._tick)
            self.tick()

    def tick(self) -> None:
        """Decide once, and let the requests go on whose programs may."""
        for name in self.pausing.tick():
            self._turns.pop(name).set()

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"programs": len(self.pausing.programs)})

    async def _release(self, request: Request) -> Response:
        name = str((await request.json())["program_id"])
        self.pausing.ended(name)
        return JSONResponse({"program_id": name, "released": True})

    async def _chat(self, request: Request) -> Response:
        raw = await request.body()
        body = json.loads(raw)
        name = str(body.pop("program_id", None) or _ALONE)
        if not self.pausing.asked(name, len(raw)):
            await self._turn(name)
        if not body.get("stream"):
            return await self._whole(name, len(raw), body)
        body["stream_options"] = {"include_usage": True}
        return await self._streamed(name, len(raw), body)

    async def _turn(self, name: str) -> None:
        turn = self._turns.setdefault(name, asyncio.Event())
        try:
            await asyncio.wait_for(turn.wait(), LONGEST)
        except TimeoutError:
            self._turns.pop(name, None)
            self.pausing.go_on(name)

    def _request(self, body: dict[str, Any]) -> httpx.Request:
        return self._client.build_request(
            "POST", f"{self._upstream}/v1/chat/completions", json=body
        )

    async def _whole(self, name: str, characters: int, body: dict[str, Any]) -> Response:
        usage: dict[str, int] = {}
        try:
            found = await self._client.send(self._request(body))
            if found.status_code == 200:
                usage = found.json()["usage"]
        except httpx.HTTPError as error:
            return JSONResponse({"error": {"message": f"{error!r}"}}, 502)
        finally:
            self._answered(name, characters, usage)
        return Response(found.content, found.status_code, media_type="application/json")

    async def _streamed(self, name: str, characters: int, body: dict[str, Any]) -> Response:
        try:
            found = await self._client.send(self._request(body), stream=True)
        except httpx.HTTPError as error:
            self._answered(name, characters, {})
            return JSONResponse({"error": {"message": f"{error!r}"}}, 502)
        return StreamingResponse(
            self._passed_on(name, characters, found),
            found.status_code,
            media_type=found.headers.get("content-type"),
        )

    async def _passed_on(
        self, name: str, characters: int, found: httpx.Response
    ) -> AsyncIterator[bytes]:
        usage: dict[str, int] = {}
        try:
            async for line in found.aiter_lines():
                if '"usage"' in line and line.startswith("data: {"):
                    usage = json.loads(line[6:]).get("usage") or usage
                yield line.encode() + b"\n"
        finally:
            await found.aclose()
            self._answered(name, characters, usage)

    def _answered(self, name: str, characters: int, usage: dict[str, int]) -> None:
        prompt, total = usage.get("prompt_tokens", 0), usage.get("total_tokens", 0)
        self.pausing.answered(name, characters, prompt, total)


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--kv-tokens", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tick", type=float, default=TICK)
    asked = parser.parse_args()
    proxy = Proxy(asked.upstream, Pausing(asked.kv_tokens), asked.tick)
    uvicorn.run(proxy.app, host="127.0.0.1", port=asked.port, log_level="warning")


if __name__ == "__main__":
    main()

__all__ = ["Proxy", "main"]
