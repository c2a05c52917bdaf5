"""`/v1/completions`: text or tokens in, text out, for harnesses that speak the older wire."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from drawloom.engine.api.engine import Delta, RequestUsage
from drawloom.engine.sequence import FinishReason
from drawloom.errors import ContextTooLong
from drawloom.ids import new_id
from drawloom.runtime.server.assembly import Event
from drawloom.runtime.server.chat_completions import ServingContext, usage
from drawloom.runtime.server.conversation import PlainRecord, TextRequest, packed
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.errors import HttpError, context_too_long
from drawloom.runtime.server.openai_requests import CompletionRequest, check_ids
from drawloom.runtime.server.prompting import in_pool


class Completion:
    """One request with its prompts. Made by `create`."""

    @classmethod
    async def create(
        cls, context: ServingContext, asked: CompletionRequest, caller: Caller
    ) -> "Completion":
        """Check a request and read its prompts. Raises `HttpError` for what makes no sense or
        cannot fit."""
        job = cls(context, asked, caller)
        job.prompts = await in_pool(job._prompts)
        return job

    def __init__(self, context: ServingContext, asked: CompletionRequest, caller: Caller) -> None:
        self.context, self.asked, self.caller = context, asked, caller
        self.id, self.created = new_id("cmpl"), int(time.time())
        if asked.model and asked.model != context.model:
            raise HttpError(
                404, f"model {asked.model!r} is not context here; {context.model!r} is",
                param="model", code="model_not_found",
            )  # fmt: skip
        self.prompts: list[tuple[str, list[int]]] = []
        self.count = asked.choices
        self._usages: list[RequestUsage] = []

    def usages(self) -> list[RequestUsage]:
        """Return the usage of each choice that was computed to its end."""
        return self._usages

    def _prompts(self) -> list[tuple[str, list[int]]]:
        """Return each prompt as text and as tokens."""
        prompt: Any = self.asked.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            prompt = [prompt]
        self.given = [p if isinstance(p, str) else None for p in prompt]
        return [self._read(one) for one in prompt]

    def _read(self, prompt: str | list[int]) -> tuple[str, list[int]]:
        context = self.context
        tokens = prompt if isinstance(prompt, list) else self._encoded(prompt)
        if not tokens:
            raise HttpError(400, "prompt: a prompt has no tokens", param="prompt")
        check_ids(tokens, context.tokenizer.size, "prompt")
        if context.max_context - len(tokens) < 1:
            raise context_too_long(len(tokens), context.max_context, "prompt")
        return context.tokenizer.decode(tokens, special=True), tokens

    def _encoded(self, text: str) -> list[int]:
        context = self.context
        try:
            if len(text) > context.prompter.most_bytes:
                raise ContextTooLong("more bytes than the context can hold")
            context.prompter.check(text)
        except ContextTooLong:
            raise context_too_long(None, context.max_context, "prompt") from None
        return context.tokenizer.encode_with_specials(text)

    async def whole(self) -> Event:
        choices: list[Event] = []
        for text, tokens in self.prompts:
            for sample in range(self.count):
                deltas = [d async for d in self._stream(text, tokens, sample)]
                choices.append(self._choice(len(choices), tokens, deltas))
        found = usage(self._usages)
        found["prompt_tokens"] = sum(len(tokens) for _, tokens in self.prompts)
        found["total_tokens"] = found["prompt_tokens"] + found["completion_tokens"]
        return self._about() | {"choices": choices, "usage": found}

    async def chunks(self) -> AsyncGenerator[Event, None]:
        index = 0
        for text, tokens in self.prompts:
            for sample in range(self.count):
                async with aclosing(self._stream(text, tokens, sample)) as deltas:
                    async for delta in deltas:
                        finish = _finish(delta)
                        if delta.text or finish:
                            choice = {"index": index, "text": delta.text, "finish_reason": finish}
                            yield self._about() | {"choices": [choice]}
                index += 1
        options = self.asked.stream_options
        if options is not None and options.include_usage:
            yield self._about() | {"choices": [], "usage": usage(self._usages)}

    async def _stream(
        self, text: str, tokens: list[int], sample: int
    ) -> AsyncGenerator[Delta, None]:
        asked, programs = self.asked, self.context.sessions
        session = programs.begin(self.caller, TextRequest(text))
        session.tokens = tokens
        wants = asked.logprobs is not None
        said: list[int] = []
        told, whole = text, False
        try:
            params = asked.params(
                self.context.max_context - len(tokens),
                self.context.tokenizer.size,
                logprobs=wants,
                top_logprobs=asked.logprobs or 0,
                score_from=1 if asked.echo and wants and len(tokens) > 1 else -1,
            )
            known = session.record.size if session.record is not None else 0
            programs.submit(session, known, asked.priority or 0, asked.max_tokens or 0)
            async with aclosing(programs.generate(session, params, None, sample=sample)) as deltas:
                async for delta in deltas:
                    said += delta.tokens
                    told += delta.text
                    if delta.usage is not None:
                        self._usages.append(delta.usage)
                        self.context.timings.observe(delta.usage, _finish(delta) or "stop")
                    yield delta
            whole = True
        finally:
            text += self.context.tokenizer.decode(said, special=True)
            record = PlainRecord(text, packed([*tokens, *said]), told=told) if whole else None
            programs.finish(session, record)

    def _choice(self, index: int, prompt: list[int], deltas: list[Delta]) -> Event:
        said = [t for d in deltas for t in d.tokens]
        text = "".join(d.text for d in deltas)
        tokens = [*prompt, *said] if self.asked.echo else said
        hidden = 0  # characters of tokens that were put before the text that was given
        if self.asked.echo:
            whole = self.context.tokenizer.decode(prompt, special=True)
            given = self.given[index // self.count]
            given = whole if given is None else given
            text, hidden = given + text, max(0, len(whole) - len(given))
        choice: Event = {"index": index, "text": text, "finish_reason": _finish(deltas[-1])}
        if self.asked.logprobs is not None:
            scored: list[float | None] = [None, *deltas[-1].scores] if self.asked.echo else []
            values = scored + [p for d in deltas for p in d.logprobs]
            tops = [dict(self._named(top)) for d in deltas for top in d.tops]
            words = [self.context.tokenizer.decode([t], special=True) for t in tokens]
            choice["logprobs"] = {
                "tokens": words,
                "token_logprobs": values,
                "top_logprobs": [None] * len(scored) + tops if self.asked.logprobs else None,
                "text_offset": [
                    max(0, sum(map(len, words[:i])) - hidden) for i in range(len(words))
                ],
            }
        return choice

    def _named(self, top: tuple[tuple[int, float], ...]) -> list[tuple[str, float]]:
        return [(self.context.tokenizer.decode([t], special=True), p) for t, p in top]

    def _about(self) -> Event:
        about = {"id": self.id, "object": "text_completion", "created": self.created}
        return about | {"model": self.context.model}


def _finish(delta: Delta) -> str | None:
    if delta.finish is None:
        return None
    return "length" if delta.finish is FinishReason.LENGTH else "stop"


__all__ = ["Completion"]
