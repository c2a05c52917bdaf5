"""One completion: from the request as it came to the answer, streamed or whole."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from drawloom.engine.base import Delta, Grammar, Usage
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.engine.tokenizer import Tokenizer
from drawloom.errors import ConfigError
from drawloom.ids import new_id
from drawloom.runtime.server.errors import HttpError, context_too_long
from drawloom.runtime.server.metrics import Timings
from drawloom.runtime.server.programs import Place, Programs
from drawloom.runtime.server.toolspecs import calls_of
from drawloom.runtime.server.wire import ChatRequest
from drawloom.tools.calls import new_call_id
from drawloom.tools.forced import call_grammar, call_mark
from drawloom.tools.parsers import (
    SPECIAL,
    Closed,
    Named,
    Parser,
    Piece,
    Reasoning,
    Text,
    make_parser,
)
from drawloom.tools.template import ChatTemplate

Event = dict[str, Any]


@dataclass(slots=True)
class Served:
    """What a server serves: a model's template, its programs, and how long things take."""

    model: str
    template: ChatTemplate
    tokenizer: Tokenizer
    programs: Programs
    timings: Timings
    max_context: int
    reasoning: bool = False
    always_usage: bool = False


@dataclass(slots=True)
class _Choice:
    """One answer as it grows."""

    index: int
    parser: Parser
    text: str = ""
    thought: str = ""
    calls: list[Event] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[Event] = field(default_factory=list)
    finish: str = ""
    usage: Usage | None = None


_Answered = tuple[_Choice, list[Piece], Delta]


class ChatCompletion:
    """Raises `HttpError` on creation for what makes no sense."""

    def __init__(
        self, served: Served, asked: ChatRequest, program: str | None, tenant: str
    ) -> None:
        self.served, self.asked = served, asked
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        if asked.model and asked.model != served.model:
            raise HttpError(
                404, f"model {asked.model!r} is not served here; {served.model!r} is",
                param="model", code="model_not_found",
            )  # fmt: skip
        self.count = asked.choices
        self.choices: list[_Choice] = []
        self.calls = calls_of(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
        shown = [tool.schema_for_model() for tool in asked.tools or []]
        forced = self._forced() if self.calls.required else None
        try:
            prompt = served.template.render([m.rendered() for m in asked.messages], shown)
        except ConfigError as error:
            raise HttpError(400, str(error), param="messages") from None
        format_ = asked.response_format
        self.grammar = forced or (format_.grammar() if format_ is not None else None)
        self.text = prompt.text
        output = asked.max_completion_tokens or asked.max_tokens or 0
        self.place = served.programs.place(program, tenant, asked.priority or 0, prompt, output)
        try:
            self.params = self._params()
        except BaseException:
            served.programs.leave(self.place, None, [])
            raise

    def _params(self) -> SamplingParams:
        asked, served = self.asked, self.served
        if asked.max_completion_tokens is not None:
            asked.max_tokens = asked.max_completion_tokens
        if not self.place.tokens:
            raise HttpError(400, "the chat template makes no prompt of this", param="messages")
        room = served.max_context - len(self.place.tokens)
        if room < 1:
            raise context_too_long(len(self.place.tokens), served.max_context, "messages")
        return asked.params(
            room,
            served.tokenizer.size,
            self._banned(),
            logprobs=bool(asked.logprobs),
            top_logprobs=asked.top_logprobs or 0,
            show_special=bool(self.calls.tools) and served.template.calls in SPECIAL,
        )

    def _banned(self) -> tuple[int, ...]:
        """The token that begins a call, if the prompt shows tools and none may be called."""
        if self.calls.tools or not self.asked.tools:
            return ()
        mark = self.served.tokenizer.id_of(call_mark(self.served.template.calls))
        return () if mark is None else (mark,)

    def _forced(self) -> Grammar:
        functions = [tool.function.model_dump() for tool in self.calls.tools]
        known = self.served.tokenizer.id_of
        try:
            lark = call_grammar(
                self.served.template.calls,
                functions,
                self.calls.several,
                lambda m: known(m) is not None,
            )
        except ConfigError as error:
            raise HttpError(400, str(error), param="tool_choice") from None
        return Grammar("lark", lark, after="</think>" if self.served.reasoning else "")

    # --- running --------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[_Answered, None]:
        """What comes of all choices, as it comes."""
        served, place = self.served, self.place
        self.choices = [self._choice(i) for i in range(self.count)]
        whole = False
        try:
            several = self._several() if self.count > 1 else self._run(self.choices[0])
            async with aclosing(several) as events:
                async for event in events:
                    yield event
            whole = True
        finally:
            self._leave(place, served, whole)

    async def _several(self) -> AsyncGenerator[_Answered, None]:
        """The choices side by side."""
        queue: asyncio.Queue[_Answered | Exception | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._queue(c, queue)) for c in self.choices]
        try:
            open_ = len(tasks)
            while open_:
                item = await queue.get()
                if item is None:
                    open_ -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _leave(self, place: Place, served: Served, whole: bool) -> None:
        first = self.choices[0]
        ids = [*place.tokens, *first.ids]
        said = served.tokenizer.decode(first.ids, special=True)
        served.programs.leave(place, self.text + said if whole else None, ids)
        for choice in self.choices:
            if choice.usage is not None:
                served.timings.observe(choice.usage, choice.finish)

    def _choice(self, index: int) -> _Choice:
        served = self.served
        name = served.template.calls if self.calls.tools else "none"
        prefix = f"{self.id}/{index}"
        if name == "none":
            parser: Parser = _Plain()
            return _Choice(index, _thinking(parser) if served.reasoning else parser)
        return _Choice(index, make_parser(name, prefix, reasoning=served.reasoning))

    async def _run(self, choice: _Choice) -> AsyncGenerator[_Answered, None]:
        one = not self.calls.several
        stream = self.served.programs.generate(
            self.place, self.params, self.grammar, choice.index, lambda: one and bool(choice.calls)
        )
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                pieces = choice.parser.feed(delta.text)
                if delta.finish is not None:
                    pieces += choice.parser.end()
                if one:
                    pieces = [] if choice.calls else _to_first_call(pieces)
                self._take(choice, pieces, delta)
                yield choice, pieces, delta

    async def _queue(
        self, choice: _Choice, queue: "asyncio.Queue[_Answered | Exception | None]"
    ) -> None:
        try:
            async with aclosing(self._run(choice)) as answered:
                async for event in answered:
                    queue.put_nowait(event)
        except Exception as error:
            queue.put_nowait(error)
        finally:
            queue.put_nowait(None)

    def _take(self, choice: _Choice, pieces: list[Piece], delta: Delta) -> None:
        choice.ids += delta.tokens
        if self.params.logprobs:
            tokens = zip(delta.tokens, delta.logprobs, strict=False)
            tops = delta.tops or ((),) * len(delta.tokens)
            choice.logprobs += [
                self._logprob(t, p, top) for (t, p), top in zip(tokens, tops, strict=True)
            ]
        for piece in pieces:
            if isinstance(piece, Text):
                choice.text += piece.text
            elif isinstance(piece, Reasoning):
                choice.thought += piece.text
            elif isinstance(piece, Named):
                self.place.lineage.tool = piece.name
            elif isinstance(piece, Closed):
                call = piece.call
                self.place.lineage.kinds.append(call.kind)
                raw = json.dumps(call.arguments) if call.error is None else call.raw
                function = {"name": call.name, "arguments": raw}
                choice.calls.append({"id": call.id, "type": "function", "function": function})
        if delta.finish is not None:
            ended = "length" if delta.finish is FinishReason.LENGTH else "stop"
            choice.finish = "tool_calls" if choice.calls and ended == "stop" else ended
            choice.usage = delta.usage

    def _logprob(self, token: int, value: float, top: Any) -> Event:
        def one(token: int, value: float) -> Event:
            text = self.served.tokenizer.decode([token], special=True)
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        return one(token, value) | {"top_logprobs": [one(*pair) for pair in top]}

    # --- whole, or in parts ---------------------------------------------------------------

    async def whole(self) -> Event:
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        choices = [
            {
                "index": c.index,
                "message": self._message(c),
                "finish_reason": c.finish,
                "logprobs": {"content": c.logprobs} if self.params.logprobs else None,
            }
            for c in self.choices
        ]
        return self._about("chat.completion") | {"choices": choices, "usage": self.usage()}

    @staticmethod
    def _message(choice: _Choice) -> Event:
        text = choice.text.strip("\n") if choice.calls else choice.text
        message: Event = {"role": "assistant", "content": text or (None if choice.calls else "")}
        if choice.thought:
            message["reasoning_content"] = choice.thought
        if choice.calls:
            message["tool_calls"] = choice.calls
        return message

    async def chunks(self) -> AsyncGenerator[Event, None]:
        begun: set[int] = set()
        async with aclosing(self.events()) as events:
            async for choice, pieces, delta in events:
                if choice.index not in begun:
                    begun.add(choice.index)
                    yield self._chunk(choice.index, {"role": "assistant", "content": ""})
                for part in self._parts(choice, pieces):
                    logprobs = choice.logprobs[-len(delta.tokens) :] if delta.tokens else []
                    yield self._chunk(choice.index, part, logprobs=logprobs)
                if delta.finish is not None:
                    yield self._chunk(choice.index, {}, choice.finish)
        options = self.asked.stream_options
        if self.served.always_usage or (options is not None and options.include_usage):
            yield self._about("chat.completion.chunk") | {"choices": [], "usage": self.usage()}

    def _parts(self, choice: _Choice, pieces: list[Piece]) -> list[Event]:
        """Deltas of the wire: a call's name first, its arguments when they are complete."""
        parts: list[Event] = []
        for piece in pieces:
            if isinstance(piece, Text) and piece.text:
                parts.append({"content": piece.text})
            elif isinstance(piece, Reasoning):
                parts.append({"reasoning_content": piece.text})
            elif isinstance(piece, Named):
                id = new_call_id(f"{self.id}/{choice.index}", piece.index)
                function = {"name": piece.name, "arguments": ""}
                call = {"index": piece.index, "id": id, "type": "function", "function": function}
                parts.append({"tool_calls": [call]})
            elif isinstance(piece, Closed):
                arguments = choice.calls[piece.index]["function"]["arguments"]
                call = {"index": piece.index, "function": {"arguments": arguments}}
                parts.append({"tool_calls": [call]})
        return parts

    def _chunk(
        self,
        index: int,
        delta: Event,
        finish: str | None = None,
        logprobs: list[Event] | None = None,
    ) -> Event:
        choice: Event = {"index": index, "delta": delta, "finish_reason": finish}
        if self.params.logprobs:
            choice["logprobs"] = {"content": logprobs or []}
        return self._about("chat.completion.chunk") | {"choices": [choice]}

    def _about(self, kind: str) -> Event:
        about = {"id": self.id, "object": kind, "created": self.created}
        return about | {"model": self.served.model, "program_id": self.place.program.id}

    def usages(self) -> list[Usage]:
        """Return the usage of each choice that was computed to its end."""
        return [c.usage for c in self.choices if c.usage is not None]

    def usage(self) -> Event:
        return usage(self.usages())


def _to_first_call(pieces: list[Piece]) -> list[Piece]:
    ends = (place for place, piece in enumerate(pieces, 1) if isinstance(piece, Closed))
    return pieces[: next(ends, None)]


class _Plain:
    """No tools were given, so nothing is a call."""

    def feed(self, text: str) -> list[Piece]:
        return [Text(text)] if text else []

    def end(self) -> list[Piece]:
        return []


def _thinking(inner: Parser) -> Parser:
    from drawloom.tools.parsers import ReasoningParser

    return ReasoningParser(inner)


def usage(found: list[Usage]) -> Event:
    """OpenAI's usage, and under `drawloom` what only we know."""
    prompt = found[0].prompt_tokens if found else 0
    output = sum(u.output_tokens for u in found)
    first = found[0] if found else None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens if first else 0},
        "drawloom": {
            "restored_tokens": first.restored_tokens if first else 0,
            "queue_ms": round(1e3 * (first.started - first.submitted), 3) if first else 0.0,
            "preemptions": sum(u.preemptions for u in found),
        },
    }


__all__ = ["ChatCompletion", "Event", "Served", "usage"]
