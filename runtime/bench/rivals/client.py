"""Unmodified HTTP agents: OpenAI chat completions, one after the other, with pauses between."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from drawloom.runtime.bench.rivals.tasks import Message, Task, Turn

_TIMEOUT = 1800.0  # seconds that a call may wait and take
_IDLE = 2.0  # seconds that a connection is kept for: servers close theirs after five


@dataclass(frozen=True, slots=True)
class Called:
    """Record a call's seconds to first text and end, and its tokens by the server's usage."""

    first: float
    seconds: float
    prompt: int
    cached: int
    output: int


@dataclass(slots=True)
class Played:
    """Hold how one task went, and its times from submission to end in seconds."""

    id: str
    calls: list[Called] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """Select how the server is spoken to.

    Args:
        ids: send a `program_id`, and say when the program has ended.
        stream: answers are streamed; else the first text comes with the last.
        banned: token ids that an answer must not have, where it becomes history: special tokens
            are left out of what comes back, and it would not be what was sampled.
    """

    ids: bool = False
    stream: bool = True
    banned: tuple[int, ...] = ()


async def play(
    url: str, tasks: Sequence[Task], way: Way, done: Callable[[Played], None] | None = None
) -> tuple[list[Played], float]:
    """Play all tasks at once against the server at `url`.

    Args:
        url: the server, without a path.
        tasks: what is played.
        way: how the server is spoken to.
        done: called with each task that has ended.

    Returns:
        How each went, and the seconds from the first request to the last answer.
    """
    limits = httpx.Limits(max_connections=None, keepalive_expiry=_IDLE)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=limits) as http:
        began = time.perf_counter()

        async def one(task: Task) -> Played:
            found = await Agent(http, task, way).run()
            if done is not None:
                done(found)
            return found

        played = await asyncio.gather(*(one(task) for task in tasks))
        return played, time.perf_counter() - began


class Agent:
    """Play one program: ask, add the answer to its history, run its tool, ask again."""

    def __init__(self, http: httpx.AsyncClient, task: Task, way: Way) -> None:
        self._http, self._task, self._way = http, task, way
        self._messages: list[Message] = []
        self._others: list[str] = []
        self._name = f"{task.id}-{uuid.uuid4().hex}"  # never that of a program before it

    async def run(self) -> Played:
        """Play the task to its end, or to the first call that fails."""
        found, began = Played(self._task.id), time.perf_counter()
        try:
            for at, turn in enumerate(self._task.turns):
                found.calls.append(await self._call(turn))
                if at + 1 < len(self._task.turns):
                    await asyncio.sleep(turn.gap)
            if self._way.ids:
                await self._http.post("/programs/release", json={"program_id": self._name})
        except (httpx.HTTPError, ValueError, LookupError) as error:
            found.error = f"{error!r}"
        found.seconds = time.perf_counter() - began
        return found

    async def _call(self, turn: Turn) -> Called:
        if turn.afresh:
            del self._messages[1:]
        self._messages += self._added(turn)
        began = time.perf_counter()
        texts, first = ["" for _ in range(turn.choices)], 0.0
        usage: dict[str, Any] = {}
        async for event in self._events(self._body(turn)):
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                said = choice.get("delta") or choice.get("message") or {}
                if said.get("content") or said.get("tool_calls"):
                    first = first or time.perf_counter() - began
                texts[choice["index"]] += said.get("content") or ""
        seconds = time.perf_counter() - began
        answer = {"role": "assistant", "content": texts[0]}
        self._messages.append(turn.recorded if self._task.recorded else answer)
        self._others = texts[1:]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Called(
            first or seconds, seconds, usage["prompt_tokens"], cached, usage["completion_tokens"]
        )

    def _added(self, turn: Turn) -> list[Message]:
        added = [dict(message) for message in turn.added]
        for number, other in enumerate(self._others, 2):
            added[0]["content"] = f"Answer {number}: {other}\n{added[0]['content']}"
        return added

    def _body(self, turn: Turn) -> dict[str, Any]:
        task, way = self._task, self._way
        body: dict[str, Any] = {
            "model": "m",
            "messages": self._messages,
            "max_tokens": turn.output,
            "ignore_eos": True,
            "temperature": task.temperature,
        }
        if turn.choices > 1:
            body["n"] = turn.choices
        if task.tools:
            body["tools"] = task.tools
        if way.banned and not task.recorded:
            body["logit_bias"] = {str(token): -100 for token in way.banned}
        if way.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if way.ids:
            body["program_id"] = self._name
        return body

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        path = "/v1/chat/completions"
        if not self._way.stream:
            answer = await self._http.post(path, json=body)
            _check(answer.status_code, answer.text)
            yield answer.json()
            return
        async with self._http.stream("POST", path, json=body) as answer:
            if answer.status_code != 200:
                _check(answer.status_code, (await answer.aread()).decode(errors="replace"))
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ValueError(str(event["error"])[:300])
                    yield event


def _check(status: int, text: str) -> None:
    if status != 200:
        raise ValueError(f"HTTP {status}: {text[:300]}")


__all__ = ["Agent", "Called", "Played", "Way", "play"]
