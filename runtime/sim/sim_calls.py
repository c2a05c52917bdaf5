"""Calls at the simulated engine, and what it counts."""

from dataclasses import dataclass, field

from drawloom.engine.sequence import SamplingParams, Sequence

BLOCK = 16


@dataclass(slots=True, eq=False)
class Work:
    """One LLM call at the engine.

    Attributes:
        seq: it in the cache; its tokens are the prompt's and, as it decodes, more of `answer`.
        prompt: tokens.
        output: tokens that it will have decoded in the end; nobody but this engine may look.
        answer: the numbers that these are in the cache.
        ready: when it was submitted; seconds, as all times.
        order: its place among all that were submitted.
        target: tokens to compute before it decodes on: the prompt's, and after it gave way what
            it had decoded by then.
        left: of these, the ones still to compute; `whole` were when it started last.
        cached: prompt tokens that were in the cache when it first started.
        begun: when it first started.
        first: when its prompt was computed.
        ends: the engine's iteration at which it has decoded everything; in the end, the time.
        preemptions: how often it gave way.
        repeated: tokens computed once more because it did.
        known: tokens that had KV when it gave way last.
    """

    step: str
    seq: Sequence
    prompt: int
    output: int
    priority: float
    ready: float
    answer: list[int] = field(default_factory=list)
    order: int = 0
    target: int = 0
    left: float = 0.0
    cached: int = 0
    begun: float = 0.0
    first: float = 0.0
    ends: float = 0.0
    preemptions: int = 0
    repeated: int = 0
    whole: float = 0.0
    known: int = 0


@dataclass(slots=True)
class Counters:
    """Tokens, and seconds in which anything was computed; `sequences` and `context` are what
    decoded in these and its tokens, times seconds. Calls gave way `preempted` times; `repeated`
    tokens were computed again because they did, and are among the `computed`."""

    prompt: int = 0
    hit: int = 0
    hit_host: int = 0
    computed: int = 0
    output: int = 0
    preempted: int = 0
    repeated: int = 0
    busy: float = 0.0
    sequences: float = 0.0
    context: float = 0.0


def sequence(step: str, conversation: str, units: list[int], salt: bytes = b"") -> Sequence:
    return Sequence(step, conversation, units, SamplingParams(max_tokens=1), salt)


__all__ = ["BLOCK", "Counters", "Work", "sequence"]
