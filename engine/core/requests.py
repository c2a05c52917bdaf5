"""A request on its way through the core: its sequence, its text, its times."""

from collections.abc import Callable
from dataclasses import dataclass

from drawloom.engine.api.engine import Delta, RequestUsage
from drawloom.engine.core.step_plan import Chunk
from drawloom.engine.sequence import FinishReason, Sequence
from drawloom.engine.text.tokenizer import TextStream


@dataclass(slots=True)
class Request:
    """A request that was submitted and has not ended."""

    seq: Sequence
    salt: bytes
    text: TextStream
    submitted: float
    started: float = 0.0
    first: float = 0.0
    cached: int = 0
    restored: int = 0

    def begins(self, chunk: Chunk, now: float) -> None:
        """Note when the first of a request is computed, and what need not be."""
        if not self.started:
            self.started = now
            self.cached, self.restored = chunk.seq.hit, chunk.seq.hit_host

    def delta(
        self,
        finish: FinishReason | None,
        now: Callable[[], float],
        token: int | None = None,
        text: str = "",
    ) -> Delta:
        """The next delta: a token and its text, or the end."""
        seq = self.seq
        reports = token is not None and seq.params.logprobs
        logprobs = (seq.logprobs.pop(0),) if reports else ()
        tops = (seq.tops.pop(0),) if reports and seq.params.top_logprobs else ()
        tokens = () if token is None else (token,)
        if finish is None:
            return Delta(seq.id, tokens, text, logprobs, tops=tops)
        text += self.text.flush()
        usage, scores = self.usage(now()), tuple(seq.scores)
        return Delta(seq.id, tokens, text, logprobs, finish, usage, None, tops, scores)

    def usage(self, now: float) -> RequestUsage:
        """The account of a request that ends now."""
        seq = self.seq
        return RequestUsage(
            seq.prompt_length,
            self.cached,
            seq.generated,
            seq.preemptions,
            self.submitted,
            self.started or now,
            self.first or now,
            now,
            self.restored,
        )


__all__ = ["Request"]
