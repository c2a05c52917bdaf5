"""The engine seam: tokens in, tokens out, and the KV verbs that programs need."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.engine.tokenizer import Tokenizer
from drawloom.errors import DrawloomError
from drawloom.leases import KVReply


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One LLM call. `tokens` is the whole prompt; what the cache knows of it is not recomputed.

    `lineage` names the conversation, `salt` separates those who may not share KV (tenants).
    Lower `priority` goes first.
    """

    id: str
    lineage: str
    tokens: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: float = 0.0
    salt: bytes = b""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one finished request. Times are `time.monotonic` seconds; `started` is when the first
    token was computed for it, `first` when its first output token was there."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    submitted: float
    started: float
    first: float
    finished: float


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step added to a request. The last one has `finish` and `usage`."""

    request: str
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    error: DrawloomError | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What does not change while an engine lives."""

    id: str
    model: str
    device: str
    max_context: int
    kv_tokens: int
    block_size: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges now, counters since the start; tokens and blocks."""

    running: int
    waiting: int
    free_blocks: int
    held_blocks: int
    leased_blocks: int
    total_blocks: int
    lineages: int
    steps: int
    prompt_tokens: int
    hit_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    generated_tokens: int
    preemptions: int
    lease_grants: int
    lease_clips: int
    lease_breaks: int


class Engine(Protocol):
    """An engine as the runtime sees it; every method may be called from the event loop."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Stream a request. Closing the generator cancels it and frees what it held at once.

        Raises `ContextTooLong` when it cannot fit, `EngineError` when it fails.
        """
        ...

    async def lease(self, lineage: str, ttl: float, value: float) -> KVReply:
        """Keep a lineage's KV for `ttl` seconds, if possible; `value` is the seconds it saves."""
        ...

    async def release(self, lineage: str, *, evict: bool = True) -> KVReply:
        """The lineage is over. With `evict`, what only it used is free at once."""
        ...

    async def fork(self, parent: str, child: str) -> KVReply:
        """`child` continues `parent`'s tokens; their KV is shared, copy-on-write."""
        ...

    async def stats(self) -> EngineStats: ...

    async def close(self) -> None: ...


__all__ = ["Delta", "Engine", "EngineInfo", "EngineStats", "GenerateRequest", "Usage"]
