"""What crosses between the engine core and the runner of a device, and the runner's seam."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.sequence import Sequence
from drawloom.errors import DrawloomError


@dataclass(slots=True, eq=False)
class Chunk:
    """Tokens of one sequence to compute: those from `start`, at the end of a context of `end`.

    `blocks` is the sequence's own list, good until the step is complete: copying it would cost
    more than all the rest of a decode step's planning. A `score` of n >= 0 asks for the
    log-probabilities of the tokens behind those from place n of the chunk on. A token that is
    `UNSAMPLED` is the one that the sequence's last step says. A chunk whose `epoch` is not its
    sequence's any more is of no use to it.
    """

    seq: Sequence
    tokens: list[int]
    start: int
    blocks: list[int]
    sample: bool
    score: int = -1
    epoch: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def scored(self) -> list[int]:
        """The tokens whose log-probabilities are asked for."""
        first = self.start + self.score + 1
        last = min(self.end + 1, self.seq.prompt_length + self.seq.resumed_tokens)
        return self.seq.tokens[first:last] if self.score >= 0 else []


@dataclass(slots=True, eq=False)
class StepPlan:
    """All that crosses from the batch to the model runner.

    `copies` are ``(source block, target block, tokens)``, made before anything is computed; their
    sources are held until it is `released`.
    """

    chunks: list[Chunk]
    copies: list[tuple[int, int, int]]
    released: bool = False


@dataclass(slots=True)
class Sampled:
    """What a step found out about a chunk: the token that follows, its log-probability under the
    unmodified distribution, the likeliest tokens there, and the `scores` of given tokens; or the
    `error` by which there is no token for this sequence."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    scores: list[float] = field(default_factory=list)
    error: DrawloomError | None = None


def chunk_of(seq: Sequence, count: int) -> Chunk:
    """Cut the next `count` tokens of a sequence that are to be computed."""
    start, length = seq.computed, len(seq.tokens)
    end = start + count
    if count == 1 and end == length and seq.params.score_from < 0:
        return Chunk(seq, [seq.tokens[-1]], start, seq.blocks, True, -1, seq.epoch)
    score, since = -1, seq.params.score_from
    if since >= 0:
        first = max(since, 1) - 1 + len(seq.scores)
        if first < end and first + 1 < seq.prompt_length + seq.resumed_tokens:
            score = first - start
    tokens = seq.tokens[start:end]
    return Chunk(seq, tokens, start, seq.blocks, end == length, score, seq.epoch)


class Runner(Protocol):
    """A model on a device, or what stands for one. Called by one thread only.

    With `ahead`, a step may be launched before the one before it is known: steps are carried out
    in their order, and what a sequence said last is fed to its next step on the device.
    """

    @property
    def ahead(self) -> bool: ...

    def launch(self, plan: StepPlan) -> Callable[[], dict[str, Sampled]]:
        """Begin a step; what it returns waits for the result, by sequence id, and raises what
        went wrong. Sequences that neither sample nor score are left out."""
        ...

    def transfer(self, copies: Copies) -> None:
        """Begin to copy blocks between the tiers; spills are done when this returns."""
        ...

    def arrived(self, wait: float = 0.0) -> tuple[list[int], list[int]]:
        """The device blocks whose saves and whose loads are through since the last time. With
        nothing to tell, waits up to `wait` seconds for it."""
        ...

    def failed(self) -> list[Copies]:
        """The copies that failed, as `arrived` found out; each is reported once."""
        ...

    def read(self, places: list[tuple[int, int]]) -> Any:
        """The KV of blocks, from the device or else from host memory, block-major on the CPU."""
        ...

    def write(self, blocks: list[int], data: Any) -> None:
        """Put what `read` gave into device blocks."""
        ...

    def update(self, weights: Any) -> None:
        """Take other weights of the same shapes, in place."""
        ...

    def sleep(self) -> None:
        """Give the device's memory back; the KV on it is lost."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


__all__ = ["Chunk", "Runner", "Sampled", "StepPlan", "chunk_of"]
