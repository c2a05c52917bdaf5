"""Step plan: what the engine core and the runner of a device exchange, and the runner's seam."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.sequence import Sequence
from drawloom.errors import DrawloomError


@dataclass(slots=True, eq=False)
class Chunk:
    """Describe tokens of one sequence that a step computes.

    Attributes:
        tokens: the tokens; `UNSAMPLED` stands for the one that the sequence's last step samples.
        start: position of the first of them.
        blocks: the sequence's own list, valid until the step completes: copying it would cost more
            than the rest of planning a decode step.
        sample: sample the token that follows.
        epoch: the sequence's at planning; if that has changed, the result is ignored.
        score: index of the first token of the chunk whose successors' log-probabilities are
            wanted, -1 for none.
    """

    seq: Sequence
    tokens: list[int]
    start: int
    blocks: list[int]
    sample: bool
    epoch: int = 0
    score: int = -1

    @property
    def end(self) -> int:
        """Return the length of the context with this chunk."""
        return self.start + len(self.tokens)

    @property
    def scored(self) -> list[int]:
        """Return the tokens whose log-probabilities are wanted."""
        first = self.start + self.score + 1
        last = min(self.end + 1, self.seq.prompt_length + self.seq.resumed_tokens)
        return self.seq.tokens[first:last] if self.score >= 0 else []


@dataclass(slots=True, eq=False)
class StepPlan:
    """Describe one engine step.

    Attributes:
        copies: ``(source block, target block, tokens)``, made before anything is computed; the
            sources are pinned until the plan is `released`.
    """

    chunks: list[Chunk]
    copies: list[tuple[int, int, int]]
    released: bool = False


@dataclass(slots=True)
class Sampled:
    """Report the result of a chunk.

    Attributes:
        token: the token that follows.
        logprob: its log-probability under the unmodified distribution.
        top: the likeliest ``(token, log-probability)`` at its position.
        scores: log-probabilities of the `Chunk.scored` tokens.
        error: why there is no token for this sequence.
    """

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    scores: list[float] = field(default_factory=list)
    error: DrawloomError | None = None


def chunk_of(seq: Sequence, count: int) -> Chunk:
    """Return the chunk of the next `count` uncomputed tokens of a sequence."""
    start, length = seq.computed, len(seq.tokens)
    end = start + count
    if count == 1 and end == length and seq.params.score_from < 0:
        return Chunk(seq, [seq.tokens[-1]], start, seq.blocks, True, seq.epoch)
    score, since = -1, seq.params.score_from
    if since >= 0:
        first = max(since, 1) - 1 + len(seq.scores)
        if first < end and first + 1 < seq.prompt_length + seq.resumed_tokens:
            score = first - start
    return Chunk(
        seq,
        seq.tokens[start:end],
        start,
        seq.blocks,
        sample=end == length,
        score=score,
        epoch=seq.epoch,
    )


class Runner(Protocol):
    """Run a model on a device. Called by one thread only.

    With `async_launch`, a step may be launched before the one before it completes: steps run in
    order, and a sequence's last token is fed to its next step on the device.
    """

    @property
    def async_launch(self) -> bool:
        """Return whether steps may be launched before the last one completes."""
        ...

    def launch(self, plan: StepPlan) -> Callable[[], dict[str, Sampled]]:
        """Start a step.

        Returns:
            A function that waits for the step and returns its results by sequence id, or raises.
            Sequences that neither sample nor score are left out.
        """
        ...

    def transfer(self, copies: Copies) -> None:
        """Start copies between the tiers; spills are complete when this returns."""
        ...

    def finished_copies(self, wait: float = 0.0) -> tuple[list[int], list[int]]:
        """Return the device blocks whose saves, and those whose loads, completed since last time.

        Args:
            wait: seconds to wait for one, if none has.
        """
        ...

    def failed_copies(self) -> list[Copies]:
        """Return the copies that failed, as `finished_copies` found out; each is reported once."""
        ...

    def read(self, places: list[tuple[int, int]]) -> Any:
        """Return the KV of blocks, block-major on the CPU.

        Args:
            places: ``(device block, host block)``; the host block is read where the first is -1.
        """
        ...

    def write(self, blocks: list[int], data: Any) -> None:
        """Write KV that `read` returned to device blocks."""
        ...

    def update(self, weights: Any) -> None:
        """Replace the weights by others of the same shapes, in place."""
        ...

    def sleep(self) -> None:
        """Give the device's memory back; the KV on it is lost."""
        ...

    def wake(self) -> None:
        """Take the device's memory again."""
        ...

    def close(self) -> None:
        """Give all resources back; no call may follow."""
        ...


__all__ = ["Chunk", "Runner", "Sampled", "StepPlan", "chunk_of"]
