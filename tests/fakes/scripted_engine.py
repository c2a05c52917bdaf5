"""Engine that answers by a script, behind the seam of the real one, and runtimes over it."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest

from drawloom.engine.api.engine import (
    BatchStats,
    Delta,
    EngineInfo,
    EngineStats,
    GenerateRequest,
    RequestUsage,
)
from drawloom.engine.sequence import FinishReason
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.leases import KVReply, LeaseStatus
from drawloom.runtime.dispatch.backends import tiny_model
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.tools.chat_template import ChatTemplate

Script = Callable[[str], str]


def call(name: str, **arguments: object) -> str:
    """A tool call as the model in the box would write it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def _scores(request: GenerateRequest, tokens: list[int]) -> dict[str, Any]:
    """Log-probabilities, as far as they are asked for."""
    if not request.params.logprobs:
        return {}
    top = tuple((token, -float(token + 1)) for token in range(request.params.top_logprobs))
    tops = (top,) * len(tokens) if top else ()
    return {"logprobs": (-0.5,) * len(tokens), "tops": tops}


class ScriptedEngine:
    """Answers each prompt with ``script(prompt)``, four tokens at a time, ended by itself. With
    `gives_way` each call does so once, after its first words."""

    def __init__(self, script: Script, pause: float = 0.0) -> None:
        folder = tiny_model()
        self.tokenizer = Tokenizer.load(folder)
        self.template = ChatTemplate.load(folder)
        self.info = EngineInfo("scripted", "scripted", "cpu", 4096, 100_000, 16)
        self.script, self.pause = script, pause
        self.prompts: list[str] = []
        self.conversations: set[str] = set()
        self.leased: dict[str, float] = {}
        self.running = 0
        self.failures: list[Exception] = []
        self.gives_way = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        if self.failures:
            raise self.failures.pop(0)
        self.conversations.add(request.conversation)
        prompt = self.tokenizer.decode(list(request.tokens), special=True)
        self.prompts.append(prompt)
        text = self.script(prompt)
        ids = self.tokenizer.encode(text)[: request.params.max_tokens]
        end = self.tokenizer.id_of("<|im_end|>")
        assert end is not None
        self.running += 1
        began = time.monotonic()
        try:
            for at in range(0, len(ids), 4):
                await asyncio.sleep(self.pause)
                part = ids[at : at + 4]
                text = self.tokenizer.decode(part)
                yield Delta(request.id, tuple(part), text, **_scores(request, part))
                if self.gives_way and at == 0:
                    yield Delta(request.id, (), "", preempted=True)
            now = time.monotonic()
            usage = RequestUsage(
                len(request.tokens),
                0,
                len(ids) + 1,
                preemptions=0,
                submitted=began,
                started=began,
                first=began,
                finished=now,
            )
            scores = _scores(request, [end])
            yield Delta(request.id, (end,), "", finish=FinishReason.STOP, usage=usage, **scores)
        finally:
            self.running -= 1

    async def lease(self, conversation: str, ttl: float, value: float) -> KVReply:
        self.leased[conversation] = ttl
        return KVReply(LeaseStatus.ACCEPTED, 0)

    async def release(self, conversation: str, *, evict: bool = True) -> KVReply:
        self.conversations.discard(conversation)
        self.leased.pop(conversation, None)
        return KVReply(LeaseStatus.ACCEPTED, 0)

    async def fork(self, parent: str, child: str) -> KVReply:
        if parent in self.conversations:
            self.conversations.add(child)
        return KVReply(LeaseStatus.ACCEPTED, 0)

    async def demote(self, conversation: str) -> KVReply:
        return KVReply(LeaseStatus.MISSING, 0)

    async def prefetch(self, conversation: str) -> KVReply:
        return KVReply(LeaseStatus.MISSING, 0)

    async def extend(
        self,
        conversation: str,
        tokens: tuple[int, ...],
        *,
        salt: bytes = b"",
        priority: float = 0.0,
    ) -> KVReply:
        return KVReply(LeaseStatus.ACCEPTED, len(tokens))

    async def stats(self) -> EngineStats:
        return EngineStats(BatchStats(running=self.running))

    async def close(self) -> None: ...


@pytest.fixture
async def open_runtime() -> AsyncIterator[Callable[..., object]]:
    """Opens runtimes over a scripted engine, and checks that each leaves nothing behind."""
    opened: list[tuple[Runtime, ScriptedEngine]] = []

    async def make(script: Script, pause: float = 0.0, **options: object) -> Runtime:
        engine = ScriptedEngine(script, pause)
        options = {"sandbox": "none", "template": engine.template, **options}
        runtime = Runtime(engine, **options)  # type: ignore[arg-type]
        await runtime.__aenter__()
        opened.append((runtime, engine))
        return runtime

    yield make
    for runtime, engine in opened:
        if runtime._dispatcher is not None:
            await runtime.__aexit__(None, None, None)
        assert not engine.conversations, "a conversation was never released"
        assert engine.running == 0
