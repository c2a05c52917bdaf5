"""A sequence: one LLM call on its way through the engine, and the options it was asked with."""

from dataclasses import dataclass, field
from enum import StrEnum

from drawloom.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Temperature 0 is greedy; noise is keyed by (seed, lineage, position).

    Args:
        stop: strings at which generation ends; the text ends before the match.
        logprobs: report the log-probability of each sampled token under the model.
        ignore_eos: go on past the end-of-sequence token (benchmarks).
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    logprobs: bool = False
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError("max_tokens must be at least 1")
        if not 0 <= self.temperature <= 100 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError("temperature in 0..100, top_p in (0, 1], top_k >= 0")
        if "" in self.stop:
            raise ConfigError("an empty stop string would end every answer")


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class Status(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """`computed` tokens have their KV in `blocks`; the rest of `tokens` is still to be computed.

    Chunked prefill, a prefix hit, resuming after preemption and decoding are all the same thing:
    `computed` catching up with `len(tokens)`.
    """

    id: str
    lineage: str
    tokens: list[int]
    params: SamplingParams
    salt: bytes = b""
    priority: float = 0.0
    arrival: int = 0
    prompt_length: int = 0
    status: Status = Status.WAITING
    computed: int = 0
    hit: int = 0
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    extent: int = -1
    extent_base: int = 0
    suspect: bool = False
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.prompt_length = self.prompt_length or len(self.tokens)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def behind(self) -> int:
        """Tokens whose KV is still to be computed; 1 while decoding."""
        return len(self.tokens) - self.computed


__all__ = ["FinishReason", "SamplingParams", "Sequence", "Status"]
