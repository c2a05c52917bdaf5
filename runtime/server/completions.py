"""Text completions (`/v1/completions`): text or tokens in, text out."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import chain

from drawloom.engine.api.engine import Delta, RequestUsage
from drawloom.errors import ContextTooLong
from drawloom.ids import new_id
from drawloom.runtime.server import openai_encoding as encoding
from drawloom.runtime.server.conversation import PlainRecord, TextRequest, packed
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.errors import HttpError, context_too_long
from drawloom.runtime.server.openai_encoding import JsonObject
from drawloom.runtime.server.openai_requests import CompletionRequest, check_ids
from drawloom.runtime.server.prompting import in_pool
from drawloom.runtime.server.serving_context import ServingContext


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Keep one prompt of a request.

    Attributes:
        given: its text as the request has it; None if the request has token ids.
        text: the text of its tokens.
    """

    given: str | None
    text: str
    tokens: list[int]


class CompletionStep:
    """Run one request for text completions, one prompt and one choice after the other."""

    _prompts: list[_Prompt]

    def __init__(self, context: ServingContext, request: CompletionRequest, caller: Caller) -> None:
        self._context, self._request, self._caller = context, request, caller
        self.id, self.created = new_id("cmpl"), int(time.time())
        context.check_model(request.model)
        self._usages: list[RequestUsage] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls, context: ServingContext, request: CompletionRequest, caller: Caller
    ) -> AsyncIterator["CompletionStep"]:
        """Check a request and tokenise its prompts.

        Each prompt gets a session of its own when it is generated.

        Raises:
            HttpError: the request is invalid, or a prompt does not fit into the context.
        """
        step = cls(context, request, caller)
        step._prompts = await in_pool(step._read_prompts)
        yield step

    @property
    def program(self) -> str:
        """Return the program's name for its client; empty if it has none."""
        return self._caller.name or ""

    def usages(self) -> list[RequestUsage]:
        """Return the usage of each choice that is complete."""
        return self._usages

    # --- prompts --------------------------------------------------------------------------

    def _read_prompts(self) -> list[_Prompt]:
        prompt = self._request.prompt
        if isinstance(prompt, str):
            return [self._read(prompt)]
        tokens = [one for one in prompt if isinstance(one, int)]
        if tokens:
            return [self._read(tokens)]
        return [self._read(one) for one in prompt if not isinstance(one, int)]

    def _read(self, prompt: str | list[int]) -> _Prompt:
        context = self._context
        tokens = prompt if isinstance(prompt, list) else self._encode(prompt)
        if not tokens:
            raise HttpError(400, "prompt: a prompt has no tokens", param="prompt")
        check_ids(tokens, context.tokenizer.size, "prompt")
        if context.max_context - len(tokens) < 1:
            raise context_too_long(len(tokens), context.max_context, "prompt")
        given = prompt if isinstance(prompt, str) else None
        return _Prompt(given, context.tokenizer.decode(tokens, special=True), tokens)

    def _encode(self, text: str) -> list[int]:
        context = self._context
        try:
            if len(text) > context.prompts.most_bytes:
                raise ContextTooLong("more bytes than the context can hold")
            context.prompts.check(text)
        except ContextTooLong:
            raise context_too_long(None, context.max_context, "prompt") from None
        return context.tokenizer.encode_with_specials(text)

    # --- generating -----------------------------------------------------------------------

    async def _generate(self, prompt: _Prompt, sample: int) -> AsyncGenerator[Delta, None]:
        """Generate one choice of a prompt in a session of its own.

        Args:
            sample: number of the choice among those of the prompt.
        """
        context, request, sessions = self._context, self._request, self._context.sessions
        session = sessions.begin(self._caller, TextRequest(prompt.text))
        session.tokens = prompt.tokens
        wants_scores = request.logprobs is not None
        sampled: list[int] = []
        shown = [prompt.text]
        record = None
        try:
            params = request.params(
                context.max_context - len(prompt.tokens),
                context.tokenizer.size,
                logprobs=wants_scores,
                top_logprobs=request.logprobs or 0,
                score_from=1 if request.echo and wants_scores and len(prompt.tokens) > 1 else -1,
            )
            known = session.record.size if session.record is not None else 0
            sessions.submit(session, known, request.priority or 0, request.max_tokens or 0)
            deltas = sessions.generate(session, params, None, sample=sample)
            async with aclosing(deltas) as stream:
                async for delta in stream:
                    sampled += delta.tokens
                    shown.append(delta.text)
                    if delta.usage is not None:
                        self._usages.append(delta.usage)
                        reason = encoding.finish_reason(delta.finish) or "stop"
                        context.timings.observe(delta.usage, reason)
                    yield delta
            record = PlainRecord(
                prompt.text + context.tokenizer.decode(sampled, special=True),
                packed([*prompt.tokens, *sampled]),
                shown="".join(shown),
            )
        finally:
            sessions.finish(session, record)

    # --- encoding -------------------------------------------------------------------------

    async def whole(self) -> JsonObject:
        """Generate all choices and return them as one JSON object."""
        choices: list[JsonObject] = []
        for prompt in self._prompts:
            for sample in range(self._request.choices):
                deltas = [delta async for delta in self._generate(prompt, sample)]
                choices.append(self._choice(len(choices), prompt, deltas))
        return self._about() | {"choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncGenerator[JsonObject, None]:
        """Generate all choices; yield the JSON objects of their stream."""
        index = 0
        for prompt in self._prompts:
            for sample in range(self._request.choices):
                async with aclosing(self._generate(prompt, sample)) as deltas:
                    async for delta in deltas:
                        if delta.text or delta.finish is not None:
                            choice = encoding.text_choice(index, delta.text, delta.finish)
                            yield self._about() | {"choices": [choice]}
                index += 1
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield self._about() | {"choices": [], "usage": self._usage()}

    def _usage(self) -> JsonObject:
        return encoding.usage(self._usages, sum(len(prompt.tokens) for prompt in self._prompts))

    def _choice(self, index: int, prompt: _Prompt, deltas: list[Delta]) -> JsonObject:
        text, hidden = "".join(delta.text for delta in deltas), 0
        if self._request.echo:
            given = prompt.text if prompt.given is None else prompt.given
            text, hidden = given + text, max(0, len(prompt.text) - len(given))
        choice = encoding.text_choice(index, text, deltas[-1].finish)
        if self._request.logprobs is not None:
            choice["logprobs"] = self._scores(prompt, deltas, hidden)
        return choice

    def _scores(self, prompt: _Prompt, deltas: list[Delta], hidden: int) -> JsonObject:
        tokens = list(chain.from_iterable(delta.tokens for delta in deltas))
        logprobs: list[float | None] = list(chain.from_iterable(d.logprobs for d in deltas))
        tops: list[dict[str, float] | None] = [
            {self._token_text(token): value for token, value in top}
            for delta in deltas
            for top in delta.tops
        ]
        if self._request.echo:
            scored: list[float | None] = [None, *deltas[-1].scores]
            tokens, logprobs = prompt.tokens + tokens, scored + logprobs
            tops = [*(None for _ in scored), *tops]
        words = [self._token_text(token) for token in tokens]
        return encoding.text_scores(
            words, logprobs, tops if self._request.logprobs else None, hidden
        )

    def _token_text(self, token: int) -> str:
        return self._context.tokenizer.decode([token], special=True)

    def _about(self) -> JsonObject:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self._context.model,
        }


__all__ = ["CompletionStep"]
