"""A sequence: one LLM call on its way through the engine, and the options it was asked with."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Integral, Real
from typing import Protocol

from drawloom.errors import ConfigError

PENDING = -1
_MOST = (1 << 31) - 1
_WHOLE = {
    "max_tokens": (0, 1 << 62), "top_k": (0, _MOST), "top_logprobs": (0, 20),
    "score_from": (-1, _MOST),
}  # fmt: skip
_NUMBERS = {
    "temperature": (0, 100), "top_p": (0, 1), "repetition_penalty": (0, 100),
    "presence_penalty": (-100, 100), "frequency_penalty": (-100, 100),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Temperature 0 is greedy; noise is keyed by seed, stream (the
    conversation, or `GenerateRequest.noise`) and position.

    Args:
        max_tokens: 0 computes the prompt's KV (and `score_from`) and says nothing.
        top_k: 0 is all.
        presence_penalty: taken once from the logit of each token that was already said.
        frequency_penalty: taken for each time that it was said.
        repetition_penalty: divides positive logits of tokens in prompt or output, multiplies
            negative ones (CTRL, Keskar et al. 2019 §4.1); 1 is none.
        logit_bias: ``(token id, added to its logit)`` pairs.
        stop: strings at which generation ends; the text ends before the match.
        logprobs: report the log-probability of each sampled token under the model.
        top_logprobs: and so many of the likeliest tokens at each place.
        score_from: report the log-probabilities of the prompt's tokens from this place on; -1 is
            none, and place 0 has none, since nothing precedes it.
        show_special: leave special tokens in the text, but for the one that ends it (some models
            mark their tool calls with such tokens).
        ignore_eos: go on past the end-of-sequence token (benchmarks).
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    score_from: int = -1
    show_special: bool = False
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE.items():
            value = getattr(self, name)
            is_whole = isinstance(value, Integral)
            if not is_whole or not low <= value <= high:
                raise ConfigError(f"{name}={value!r}: choose a whole number from {low} to {high}")
        for name, (least, most) in _NUMBERS.items():
            value = getattr(self, name)
            is_number = isinstance(value, Real)
            if not is_number or not least <= value <= most:  # NaN is in no range
                raise ConfigError(f"{name}={value!r}: choose a number from {least} to {most}")
        if not self.top_p or not self.repetition_penalty:
            raise ConfigError("top_p and repetition_penalty must be over 0; 1 is none")
        if not isinstance(self.seed, Integral):
            raise ConfigError(f"seed={self.seed!r}: choose a whole number")
        if isinstance(self.stop, str) or not all(isinstance(text, str) for text in self.stop):
            raise ConfigError(f"stop={self.stop!r}: give a list of strings")
        if "" in self.stop:
            raise ConfigError("an empty stop string would end every answer")
        _check_bias(self.logit_bias)

    @property
    def penalised(self) -> bool:
        """Whether what was said before changes the logits."""
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )


def _check_bias(pairs: object) -> None:
    """Refuse a bias that is no ``(token id, finite number)`` pair: NaN would be chosen always."""
    if not isinstance(pairs, (tuple, list)):
        raise ConfigError(f"logit_bias={pairs!r}: give pairs of a token id and a number")
    for pair in pairs:
        match pair:
            case (Integral(), Real() as bias) if math.isfinite(bias):
                pass
            case _:
                raise ConfigError(f"logit_bias has {pair!r}: give a token id and a finite number")


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class Status(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Guide(Protocol):
    """What a grammar lets a sequence say next."""

    def mask(self) -> bytes:
        """A bit for each token id, lowest first, set where the token is allowed."""
        ...

    def accept(self, token: int) -> None: ...

    @property
    def complete(self) -> bool:
        """Whether nothing can follow: the sequence ends."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """`computed` tokens have their KV in `blocks`; the rest of `tokens` is still to be computed.

    Chunked prefill, a prefix hit, resuming after preemption and decoding are all the same thing:
    `computed` catching up with `len(tokens)`.

    Attributes:
        noise: the stream of random numbers it takes part in, by default its conversation's.
        said: of the given tokens, how many at the end were generated before (a resumed call).
        hashes: chained keys of the full blocks of `tokens`, as far as they were needed.
        published: how many of its blocks are known to others by these keys.
        dropped: how many of its first blocks it gave back, behind its sliding window.
        orphan: its conversation was released while it ran; nothing of it is remembered.
        loading: copies from host memory that it waits for; while there are any it is parked.
        done: tokens whose KV is known to be there; `computed` also counts what is under way.
        pending: how many of its last tokens are `PENDING`: the steps that say them are under way.
        flying: how many of its chunks are under way; those of an older `epoch` count for nothing.
        seat: its place in the runner's tables while it runs.
        sent: how many of its blocks the runner's table has.
    """

    id: str
    conversation: str
    tokens: list[int]
    params: SamplingParams
    salt: bytes = b""
    priority: float = 0.0
    said: int = 0
    guide: Guide | None = None
    arrival: int = 0
    prompt_length: int = 0
    status: Status = Status.WAITING
    computed: int = 0
    hit: int = 0
    hit_host: int = 0
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    published: int = 0
    dropped: int = 0
    loading: int = 0
    done: int = 0
    pending: int = 0
    flying: int = 0
    epoch: int = 0
    seat: int = -1
    sent: int = 0
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    extent: int = -1
    extent_base: int = 0
    suspect: bool = False
    orphan: bool = False
    preemptions: int = 0
    noise: str = ""

    def __post_init__(self) -> None:
        self.noise = self.noise or self.conversation
        self.prompt_length = self.prompt_length or len(self.tokens) - self.said

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def behind(self) -> int:
        """Tokens whose KV is still to be computed; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def close(self) -> bool:
        """Whether what it said last must be known before its next step can be planned: a grammar
        and penalties are told every token, and scores are counted as they come."""
        params = self.params
        return self.guide is not None or params.penalised or params.score_from >= 0

    def land(self) -> None:
        """Forget what is under way, and that it would compute anything: it may yet fail."""
        if self.flying:
            self.computed = self.done
        if self.pending:
            del self.tokens[-self.pending :]
        self.pending = self.flying = 0
        self.epoch += 1

    @property
    def reusable(self) -> int:
        """Tokens that may come from the cache: not the last, nor one whose logits are scored."""
        last = len(self.tokens) - 1
        start = self.params.score_from
        return last if start < 0 else min(last, max(start, 1) - 1 + len(self.scores))


__all__ = ["PENDING", "FinishReason", "Guide", "SamplingParams", "Sequence", "Status"]
