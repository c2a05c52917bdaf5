"""Engine seam: tokens in, tokens out, and the KV of conversations between their requests."""

import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.engine.stats import BatchStats, CacheStats, EngineStats
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import ConfigError, DrawloomError
from drawloom.leases import KVReply

_GRAMMAR_KINDS = ("json_schema", "regex", "lark", "choice")


@dataclass(frozen=True, slots=True)
class Grammar:
    """Constrain an answer.

    Args:
        kind: ``json_schema``, ``regex``, ``lark`` (llguidance's dialect) or ``choice``.
        text: the schema, expression or grammar; for a choice, a JSON list of strings.
        after: a string behind whose first occurrence the grammar begins, as ``</think>``. Until
            then anything may be generated.

    Raises:
        ConfigError: if the kind is unknown.
    """

    kind: str
    text: str
    after: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _GRAMMAR_KINDS:
            known = ", ".join(_GRAMMAR_KINDS)
            raise ConfigError(f"grammar {self.kind!r} is not known; choose {known}")


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Ask an engine for one LLM call.

    Args:
        id: unique among the requests that run.
        conversation: the conversation that it continues or begins.
        tokens: the whole prompt; what the cache has of it is not computed again.
        priority: lower is served first.
        salt: separates those that must not share KV (tenants, adapters).
        grammar: constrains the answer.
        resumed_tokens: how many of `tokens`, the last ones, an earlier try of the same call
            generated. The answer continues as if it had never stopped.
        noise: stream of random numbers that ``params.seed`` begins, by default the conversation's.
            Requests with the same prompt, seed and stream have the same answer.

    Raises:
        ConfigError: if the priority is not finite.
    """

    id: str
    conversation: str
    tokens: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: float = 0.0
    salt: bytes = b""
    grammar: Grammar | None = None
    resumed_tokens: int = 0
    noise: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.priority):  # no other request could be ordered beside it
            raise ConfigError(f"request {self.id}: priority={self.priority} is not a finite number")


@dataclass(frozen=True, slots=True)
class RequestUsage:
    """Report what a finished request used. Times are `time.monotonic` seconds.

    Attributes:
        cached_tokens: prompt tokens that were not computed; `restored_tokens` of them were loaded
            from host memory.
        preemptions: how often it lost its blocks to other requests.
        submitted: when it was queued.
        started: when its first token was computed.
        first: when its first output token was there.
        finished: when it ended.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    submitted: float
    started: float
    first: float
    finished: float
    restored_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """Report what a step added to a request.

    Attributes:
        logprobs: log-probability of each token, if asked for.
        finish: why the request ended; None while it goes on. The last delta also has `usage`.
        error: why it failed, if it did.
        tops: the likeliest ``(token, log-probability)`` at the position of each token.
        scores: log-probabilities of the prompt's tokens from `SamplingParams.score_from` on, in
            the last delta.
        preempted: the request lost its blocks to others and waits; the delta has nothing else.
        lost: the engine's process died with the request's KV; the delta has nothing else. The
            request continues behind its delivered tokens when the next delta is asked for.
    """

    request: str
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] = ()
    finish: FinishReason | None = None
    usage: RequestUsage | None = None
    error: DrawloomError | None = None
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    scores: tuple[float, ...] = ()
    preempted: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Describe an engine, as far as it does not change. Empty and 0 are unknown.

    Attributes:
        max_context: most tokens of one request.
        kv_tokens: tokens that the KV cache holds on the device, `host_tokens` in host memory.
        block_size: tokens a KV block.
        vocabulary: ids of the model; those that its tokenizer does not have are never sampled.
            0 is as many as the tokenizer has.
        dtype, weights: as in `EngineConfig`, with ``auto`` resolved.
        threads: compute threads on a CPU.
        max_sequences: most sequences of a step, of `max_batch_tokens` tokens at most.
    """

    id: str
    model: str
    device: str
    max_context: int
    kv_tokens: int
    block_size: int
    host_tokens: int = 0
    vocabulary: int = 0
    dtype: str = ""
    weights: str = ""
    threads: int = 0
    max_sequences: int = 0
    max_batch_tokens: int = 0


class Engine(Protocol):
    """Serve requests and keep the KV of conversations. Call it from one event loop."""

    @property
    def info(self) -> EngineInfo:
        """Return the description of the engine."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Stream a request. Closing the generator cancels it and frees its blocks.

        Raises:
            ContextTooLong: if it cannot fit.
            EngineError: if it fails.
        """
        ...

    async def lease(self, conversation: str, ttl: float, value: float) -> KVReply:
        """Keep a conversation's KV, if possible.

        Args:
            ttl: seconds to keep it for.
            value: seconds that having it saves; leases of low value per block break first.
        """
        ...

    async def release(self, conversation: str, *, evict: bool = True) -> KVReply:
        """End a conversation.

        Args:
            evict: free the blocks that only it used at once.
        """
        ...

    async def fork(self, parent: str, child: str) -> KVReply:
        """Begin a conversation as a copy of another; their KV is shared, copy-on-write."""
        ...

    async def demote(self, conversation: str) -> KVReply:
        """Move a conversation's KV to host memory; `MISSING` if there is none."""
        ...

    async def prefetch(self, conversation: str) -> KVReply:
        """Load a conversation's KV from host memory before it is needed."""
        ...

    async def extend(
        self,
        conversation: str,
        tokens: tuple[int, ...],
        *,
        salt: bytes = b"",
        priority: float = 0.0,
    ) -> KVReply:
        """Compute the KV of tokens that a conversation's next prompt begins with.

        May be called again when more is known: an extension that runs is cancelled, and what it
        computed is reused. The prompt reuses what it has in common with `tokens`.
        """
        ...

    async def stats(self) -> EngineStats:
        """Return the present statistics."""
        ...

    async def close(self) -> None:
        """End the engine; requests that run raise `EngineClosed`."""
        ...


@runtime_checkable
class Restarting(Protocol):
    """Report the deaths of an engine whose process is replaced when it dies."""

    def watch(self, on_change: Callable[[bool], None]) -> None:
        """Report each death and its end, on the event loop that calls this.

        Args:
            on_change: called with False when all KV is gone and nothing is computed, before any
                request gets its delta that is `lost`; with True when commands are answered again:
                by the engine that `Engine.info` then describes, or by an error, because there is
                none.
        """
        ...


__all__ = [
    "BatchStats",
    "CacheStats",
    "Delta",
    "Engine",
    "EngineInfo",
    "EngineStats",
    "GenerateRequest",
    "Grammar",
    "RequestUsage",
    "Restarting",
]
