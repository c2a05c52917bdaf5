"""Requests at an engine core: their sequences, their text, and the deltas of their answers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from drawloom.engine.api.engine import Delta, GenerateRequest, RequestUsage
from drawloom.engine.core.batch_members import Output
from drawloom.engine.core.batch_scheduler import Batch
from drawloom.engine.core.faults import as_exception
from drawloom.engine.core.step_plan import Chunk
from drawloom.engine.sequence import FinishReason, Guide, Sequence
from drawloom.engine.text.tokenizer import TextStream, Tokenizer
from drawloom.errors import ConfigError, DrawloomError, EngineError

log = logging.getLogger("drawloom.engine")


class Grammars(Protocol):
    """Compile grammars into guides."""

    def guide(self, kind: str, text: str, after: str) -> Guide:
        """Return the guide of a grammar.

        Raises:
            ConfigError: if the grammar cannot be compiled.
        """
        ...


@dataclass(slots=True)
class ActiveRequest:
    """Track a request that has not ended.

    Attributes:
        salt: as the request has it, without the version of the weights.
        submitted: when it was queued, in seconds; `started` when its first chunk was computed,
            `first` when its first token was delivered.
        cached: tokens that were found in the KV cache; `restored` of them in host memory.
    """

    seq: Sequence
    salt: bytes
    text: TextStream
    submitted: float
    started: float = 0.0
    first: float = 0.0
    cached: int = 0
    restored: int = 0

    def start(self, chunk: Chunk, now: float) -> None:
        """Note the start of the first chunk, and which tokens the cache saved."""
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
        """Return the next delta: a token and its text, or the end of the request."""
        seq = self.seq
        reports = token is not None and seq.params.logprobs
        logprobs = (seq.logprobs.pop(0),) if reports else ()
        tops = (seq.tops.pop(0),) if reports and seq.params.top_logprobs else ()
        tokens = () if token is None else (token,)
        if finish is None:
            return Delta(seq.id, tokens, text, logprobs, tops=tops)
        return Delta(
            seq.id,
            tokens,
            text + self.text.flush(),
            logprobs,
            finish,
            self.usage(now()),
            tops=tops,
            scores=tuple(seq.scores),
        )

    def usage(self, now: float) -> RequestUsage:
        """Return the usage of a request that ends now."""
        seq = self.seq
        return RequestUsage(
            prompt_tokens=seq.prompt_length,
            cached_tokens=self.cached,
            output_tokens=seq.generated,
            preemptions=seq.preemptions,
            submitted=self.submitted,
            started=self.started or now,
            first=self.first or now,
            finished=now,
            restored_tokens=self.restored,
        )


class RequestBook:
    """Keep the requests that have not ended, and turn outputs of the batch into their deltas.

    Attributes:
        open: the requests by id.
    """

    def __init__(
        self,
        batch: Batch,
        tokenizer: Tokenizer,
        vocabulary: int,
        grammars: Grammars | None,
        clock: Callable[[], float],
    ) -> None:
        self._batch, self._tokenizer, self._vocabulary = batch, tokenizer, vocabulary
        self._grammars, self._clock = grammars, clock
        self.open: dict[str, ActiveRequest] = {}
        self._extensions: dict[str, str] = {}

    def make(self, request: GenerateRequest, salt: bytes) -> ActiveRequest:
        """Check a request and make its sequence; `add` it when that is queued.

        Args:
            salt: the request's, with the version of the weights.

        Raises:
            EngineError: if the request is inconsistent.
            ConfigError: if its grammar cannot be compiled.
        """
        self._check(request)
        seq = Sequence(
            request.id,
            request.conversation,
            list(request.tokens),
            request.params,
            salt,
            request.priority,
            resumed_tokens=request.resumed_tokens,
            guide=self._guide(request),
            noise=request.noise,
        )
        prompt = len(request.tokens) - request.resumed_tokens
        text = self._tokenizer.stream(
            request.params.stop,
            special=request.params.show_special,
            after=request.tokens[:prompt],
        )
        for token in request.tokens[prompt:]:
            text.push(token)
        return ActiveRequest(seq, request.salt, text, self._clock())

    def add(self, request: ActiveRequest) -> None:
        """Add a request whose sequence was queued."""
        seq = request.seq
        self.open[seq.id] = request
        if not seq.params.max_tokens and seq.params.score_from < 0:
            self._extensions[seq.conversation] = seq.id

    def _check(self, request: GenerateRequest) -> None:
        if request.id in self.open:
            raise EngineError(f"request {request.id} is already running")
        size, tokens = self._vocabulary, request.tokens
        if tokens and not (min(tokens) >= 0 and max(tokens) < size):
            bad = next(t for t in tokens if not 0 <= t < size)
            raise EngineError(f"token id {bad} is outside the vocabulary of {size}")
        if any(not 0 <= token < size for token, _ in request.params.logit_bias):
            raise EngineError(f"logit_bias names a token outside the vocabulary of {size}")
        resumed = request.resumed_tokens
        if not 0 <= resumed <= min(len(tokens) - 1, request.params.max_tokens):
            raise EngineError(
                f"request {request.id}: resumed_tokens={resumed} is out of range: the prompt "
                "before them needs a token, and they count as part of max_tokens"
            )

    def _guide(self, request: GenerateRequest) -> Guide | None:
        grammar = request.grammar
        if grammar is None:
            return None
        if self._grammars is None:
            raise ConfigError("this engine knows no grammars: install llguidance")
        guide = self._grammars.guide(grammar.kind, grammar.text, grammar.after)
        for token in request.tokens[len(request.tokens) - request.resumed_tokens :]:
            guide.accept(token)
        return guide

    def pop_extension(self, conversation: str) -> str | None:
        """Return the id of the extension of a conversation that runs, which is to be cancelled."""
        return self._extensions.pop(conversation, None)

    def close(self, seq: Sequence) -> None:
        """Remove the request of a sequence that ended."""
        self.open.pop(seq.id, None)
        if self._extensions.get(seq.conversation) == seq.id:
            del self._extensions[seq.conversation]

    def deliver(self, output: Output) -> Delta:
        """Return the delta of an output. If that fails, the request fails."""
        request = self.open[output.seq.id]
        if output.error is not None:
            return self._fail(request, output.error)
        try:
            return self._advance(request, output)
        except BaseException as raised:
            error = as_exception(raised)
            self._batch.fail(output.seq, error)
            self._batch.take_failures()
            log.exception("the answer of request %s cannot be delivered", output.seq.id)
            if not isinstance(error, DrawloomError):
                error = EngineError(f"the answer cannot be delivered: {error!r}")
            return self._fail(request, error)

    def _advance(self, request: ActiveRequest, output: Output) -> Delta:
        """Add a token to the text of a request, which may end at a stop string."""
        seq, token, finish = output.seq, output.token, output.finish
        request.first = request.first or self._clock()
        if token is None:
            return self._delta(request, finish)
        ends = finish is FinishReason.STOP and self._batch.ends(seq, token)
        piece = "" if ends and seq.params.show_special else request.text.push(token)
        if request.text.stopped:
            if finish is None:
                self._batch.cancel(seq.id)
            finish = FinishReason.STOP
        return self._delta(request, finish, token, piece)

    def _delta(
        self,
        request: ActiveRequest,
        finish: FinishReason | None,
        token: int | None = None,
        text: str = "",
    ) -> Delta:
        delta = request.delta(finish, self._clock, token, text)
        if finish is not None:
            self.close(request.seq)
        return delta

    def _fail(self, request: ActiveRequest, error: DrawloomError) -> Delta:
        self.close(request.seq)
        try:
            usage = request.usage(self._clock())
        except Exception:
            log.exception("request %s has no usage", request.seq.id)
            usage = None
        return Delta(request.seq.id, (), "", finish=FinishReason.ERROR, usage=usage, error=error)


__all__ = ["ActiveRequest", "Grammars", "RequestBook"]
