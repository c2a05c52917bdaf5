"""Sequence: one LLM call on its way through the engine, and its sampling options."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Integral, Real
from typing import Protocol

from drawloom.errors import ConfigError

UNSAMPLED = -1
_INT32_MAX = (1 << 31) - 1
_INTEGER_RANGES = {
    "max_tokens": (0, 1 << 62),
    "top_k": (0, _INT32_MAX),
    "top_logprobs": (0, 20),
    "score_from": (-1, _INT32_MAX),
}
_NUMBER_RANGES = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "repetition_penalty": (0, 100),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Configure how the tokens of one request are sampled.

    Sampling noise is a function of the seed, the noise stream (the conversation, or
    `GenerateRequest.noise`) and the position, so a request repeats exactly.

    Args:
        max_tokens: most tokens to generate; 0 computes the prompt's KV (and the scores of
            `score_from`) and generates nothing.
        temperature: 0 is greedy.
        top_p: smallest probability mass that is sampled from; 1 is all.
        top_k: most likely tokens that are sampled from; 0 is all.
        seed: of the sampling noise.
        presence_penalty: subtracted once from the logit of each token that occurs in the output.
        frequency_penalty: subtracted for each occurrence in the output.
        repetition_penalty: divides positive and multiplies negative logits of the tokens of
            prompt and output (CTRL, Keskar et al. 2019, section 4.1); 1 is none.
        logit_bias: ``(token id, number)`` pairs; the number is added to the token's logit.
        stop: strings that end generation; the text ends before the match.
        stop_ids: token ids that end generation.
        logprobs: report the log-probability of each sampled token under the model.
        top_logprobs: how many of the likeliest tokens to report at each position.
        score_from: report log-probabilities of the prompt's tokens from this position on; -1 is
            none. Position 0 has none, because no token precedes it.
        show_special: keep special tokens in the text, except for the one that ends it. Some models
            mark their tool calls with special tokens.
        ignore_eos: continue after the end-of-sequence token (for benchmarks).

    Raises:
        ConfigError: if a value is out of its range.
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
        for name, (low, high) in _INTEGER_RANGES.items():
            value = getattr(self, name)
            is_whole = isinstance(value, Integral)
            if not is_whole or not low <= value <= high:
                raise ConfigError(f"{name}={value!r}: choose a whole number from {low} to {high}")
        for name, (least, most) in _NUMBER_RANGES.items():
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
        """Return whether any penalty is set, so that earlier tokens change the logits."""
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )


def _check_bias(pairs: object) -> None:
    """Raise `ConfigError` for a bias that is not a ``(token id, finite number)`` pair.

    A token with a bias of NaN would always be chosen.
    """
    if not isinstance(pairs, (tuple, list)):
        raise ConfigError(f"logit_bias={pairs!r}: give pairs of a token id and a number")
    for pair in pairs:
        match pair:
            case (Integral(), Real() as bias) if math.isfinite(bias):
                pass
            case _:
                raise ConfigError(f"logit_bias has {pair!r}: give a token id and a finite number")


class FinishReason(StrEnum):
    """Name why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class Status(StrEnum):
    """Name the state of a sequence in its batch."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Guide(Protocol):
    """Constrain the next token of one sequence by a grammar."""

    def mask(self) -> bytes:
        """Return the allowed tokens: one bit for each token id, lowest first."""
        ...

    def accept(self, token: int) -> None:
        """Advance the grammar by a sampled token."""
        ...

    @property
    def complete(self) -> bool:
        """Return whether no token may follow, which ends the sequence."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """Track one request in a batch: its tokens, its KV blocks, and how far it is computed.

    The first `computed` of the `tokens` have their KV in `blocks`, or will have it when the steps
    in flight are complete. Chunked prefill, a prefix hit, resumption after preemption and decoding
    are all the same: `computed` catches up with ``len(tokens)``.

    Attributes:
        salt: separates the KV of tenants, weights and adapters from each other.
        priority: lower runs first; ties are broken by `arrival`.
        resumed_tokens: how many of the given tokens, the last ones, an earlier try of this call
            generated.
        computed: tokens whose KV is computed, or is being computed by a step in flight.
        hit: tokens that were found in the KV cache; `hit_host` of them in host memory.
        blocks: device blocks, -1 where a sliding window has passed.
        hashes: chained keys of the full blocks of `tokens`, as far as they were needed.
        published: how many of the blocks the prefix index knows by these keys.
        dropped: how many of the first blocks were freed behind the sliding window.
        loading: loads from host memory that the sequence is parked for.
        confirmed: tokens whose KV is certainly computed: `computed` without steps in flight.
        unsampled: how many of the last tokens are `UNSAMPLED`, to be sampled by a step in flight.
        in_flight: chunks in flight; those of an older `epoch` are ignored when they complete.
        slot: row of the runner's tables while the sequence runs, else -1.
        table_blocks: how many of the blocks the runner's table has.
        extent: first of the neighbouring blocks reserved for it, else -1; the reservation begins
            at block number `extent_base` of the sequence.
        suspect: was in a step that failed, and will be run alone.
        released: its conversation was released while it ran; no record of it is kept.
        noise: stream of random numbers, by default the conversation's.
    """

    id: str
    conversation: str
    tokens: list[int]
    params: SamplingParams
    salt: bytes = b""
    priority: float = 0.0
    resumed_tokens: int = 0
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
    confirmed: int = 0
    unsampled: int = 0
    in_flight: int = 0
    epoch: int = 0
    slot: int = -1
    table_blocks: int = 0
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    extent: int = -1
    extent_base: int = 0
    suspect: bool = False
    released: bool = False
    preemptions: int = 0
    noise: str = ""

    def __post_init__(self) -> None:
        self.noise = self.noise or self.conversation
        self.prompt_length = self.prompt_length or len(self.tokens) - self.resumed_tokens

    @property
    def generated(self) -> int:
        """Return the number of generated tokens, resumed ones included."""
        return len(self.tokens) - self.prompt_length

    @property
    def uncomputed(self) -> int:
        """Return the number of tokens whose KV is still to be computed; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def needs_sync(self) -> bool:
        """Return whether its last token must be known before its next step can be planned.

        A grammar and penalties need every token, and scores are counted as they arrive.
        """
        params = self.params
        return self.guide is not None or params.penalised or params.score_from >= 0

    def rollback_in_flight(self) -> None:
        """Return to the confirmed state: results of the steps in flight will be ignored."""
        if self.in_flight:
            self.computed = self.confirmed
        if self.unsampled:
            del self.tokens[-self.unsampled :]
        self.unsampled = self.in_flight = 0
        self.epoch += 1

    @property
    def reusable(self) -> int:
        """Return how many tokens may come from the cache.

        The last token is computed for its logits, and so are tokens that are scored.
        """
        last = len(self.tokens) - 1
        start = self.params.score_from
        return last if start < 0 else min(last, max(start, 1) - 1 + len(self.scores))


__all__ = ["UNSAMPLED", "FinishReason", "Guide", "SamplingParams", "Sequence", "Status"]
