"""Calls at the simulated engine, and what it counts."""

from dataclasses import dataclass, field

from drawloom.engine.sequence import SamplingParams, Sequence

BLOCK = 16


@dataclass(slots=True, eq=False)
class Work:
    """Keep the progress of one LLM call at the engine.

    Attributes:
        step: its name.
        seq: its sequence in the cache; its tokens are the prompt's and, as it decodes, more of
            `answer`.
        prompt: tokens.
        output: tokens that it will have decoded in the end; only the engine may look.
        priority: lower goes first.
        ready: when it was submitted; seconds, as all times.
        answer: numbers of its output in the cache.
        order: its number among all submitted calls.
        target: tokens to compute before it decodes: the prompt's, and after a preemption the ones
            that it had decoded by then.
        left: those of `target` that are still to compute.
        cached: prompt tokens that were in the cache when it first started.
        begun: when it first started.
        first: when its prompt was computed.
        ends: the engine's iteration at which it has decoded everything; in the end, the time.
        preemptions: how often it was preempted.
        repeated: tokens computed once more because it was.
        whole: `left` when it started last.
        known: tokens that had KV when it was preempted last.
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
    """Count tokens and seconds of an engine.

    Attributes:
        prompt: tokens of prompts.
        hit: those of them that were in the cache.
        hit_host: those of these that were in host memory.
        computed: tokens of prompts that were computed.
        output: tokens decoded.
        preempted: preemptions of calls.
        repeated: computed tokens that had been computed before a preemption.
        busy: seconds in which anything was computed.
        sequences: sequences that decoded, times seconds.
        context: context tokens of these, times seconds.
    """

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
    """Return a sequence for the cache."""
    return Sequence(step, conversation, units, SamplingParams(max_tokens=1), salt)


__all__ = ["BLOCK", "Counters", "Work", "sequence"]
