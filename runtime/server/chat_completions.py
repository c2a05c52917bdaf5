"""One completion: from the request as it came to the answer, streamed or whole."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from drawloom.engine.api.engine import Grammar, RequestUsage
from drawloom.engine.sequence import SamplingParams
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.errors import ConfigError, ContextTooLong
from drawloom.ids import new_id
from drawloom.runtime.server.assembly import Assembly, Event, PlainParser
from drawloom.runtime.server.conversation import Answer, ChatTurn, Record, packed
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.errors import HttpError, context_too_long
from drawloom.runtime.server.history import read_entry
from drawloom.runtime.server.metrics import Timings
from drawloom.runtime.server.openai_requests import ChatRequest, Message
from drawloom.runtime.server.prompting import Prompted, Prompter, in_pool
from drawloom.runtime.server.sessions import Session, SessionTable
from drawloom.runtime.server.toolspecs import calls_of
from drawloom.tools.chat_template import ChatTemplate
from drawloom.tools.forced_call_grammar import call_grammar, call_mark
from drawloom.tools.parsers import (
    Parser,
    ReasoningParser,
    make_parser,
    needs_special,
    opens_thought,
)


@dataclass(slots=True)
class ServingContext:
    """What a server serves: a model's template, its programs, and how long things take."""

    model: str
    template: ChatTemplate
    tokenizer: Tokenizer
    sessions: SessionTable
    timings: Timings
    max_context: int
    reasoning: bool = False
    prompter: Prompter = field(init=False)

    def __post_init__(self) -> None:
        self.prompter = Prompter(self.template, self.tokenizer, self.max_context)


class ChatCompletion:
    """One request, from its session in a program to its answer. Made by `create`."""

    turn: ChatTurn
    session: Session
    prompted: Prompted
    params: SamplingParams

    @classmethod
    async def create(
        cls, context: ServingContext, asked: ChatRequest, caller: Caller
    ) -> "ChatCompletion":
        """Check a request, find the conversation that it continues, and make its prompt.

        Raises `HttpError` for what makes no sense or cannot fit.
        """
        job = cls(context, asked)
        job.turn = await in_pool(ChatTurn.read, asked.messages)
        job.session = context.sessions.begin(caller, job.turn)
        try:
            await job._prompt()
        except BaseException:
            context.sessions.finish(job.session)
            raise
        return job

    def __init__(self, context: ServingContext, asked: ChatRequest) -> None:
        self.context, self.asked = context, asked
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        if asked.model and asked.model != context.model:
            raise HttpError(
                404, f"model {asked.model!r} is not context here; {context.model!r} is",
                param="model", code="model_not_found",
            )  # fmt: skip
        self.count = asked.choices
        self.choices: list[Assembly] = []
        _check_size(asked, context)
        self.calls = calls_of(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
        self.shown = [tool.schema_for_model() for tool in asked.tools or []]

    async def _prompt(self) -> None:
        """Make the prompt and tell the scheduler of it."""
        context, session = self.context, self.session
        try:
            self.prompted = await in_pool(
                context.prompter.make, self.turn, self.shown, self._record, session.match
            )
        except ContextTooLong:
            raise context_too_long(None, context.max_context, "messages") from None
        except ConfigError as error:
            raise HttpError(400, str(error), param="messages") from None
        session.tokens = self.prompted.tokens
        self.inside = opens_thought(self.prompted.prompt)
        self.thinks = context.reasoning or self.inside
        offered = frozenset(tool.function.name for tool in self.calls.tools)
        self.reader = partial(_reader, context.template.calls, offered, self.thinks, self.inside)
        format_ = self.asked.response_format
        forced = self._forced() if self.calls.required else None
        self.grammar = forced or (format_.grammar() if format_ is not None else None)
        self.params = self._params()
        output = self.asked.max_completion_tokens or self.asked.max_tokens or 0
        context.sessions.submit(session, self.prompted.known, self.asked.priority or 0, output)

    @property
    def _record(self) -> Record | None:
        return self.session.record if isinstance(self.session.record, Record) else None

    def _params(self) -> SamplingParams:
        asked, context = self.asked, self.context
        if asked.max_completion_tokens is not None:
            asked.max_tokens = asked.max_completion_tokens
        if not self.session.tokens:
            raise HttpError(400, "the chat template makes no prompt of this", param="messages")
        room = context.max_context - len(self.session.tokens)
        if room < 1:
            raise context_too_long(len(self.session.tokens), context.max_context, "messages")
        format = context.template.calls if self.calls.tools else ""
        return asked.params(
            room,
            context.tokenizer.size,
            self._banned(),
            logprobs=bool(asked.logprobs),
            top_logprobs=asked.top_logprobs or 0,
            show_special=needs_special(format, self.thinks, context.tokenizer.hides),
        )

    def _banned(self) -> tuple[int, ...]:
        """Return the token that begins a call, if the prompt shows tools and none may be called."""
        if self.calls.tools or not self.asked.tools:
            return ()
        mark = self.context.tokenizer.id_of(call_mark(self.context.template.calls))
        return () if mark is None else (mark,)

    def _forced(self) -> Grammar:
        functions = [tool.function.model_dump() for tool in self.calls.tools]
        known = self.context.tokenizer.id_of
        try:
            lark = call_grammar(
                self.context.template.calls,
                functions,
                self.calls.several,
                lambda m: known(m) is not None,
            )
        except ConfigError as error:
            raise HttpError(400, str(error), param="tool_choice") from None
        return Grammar("lark", lark, after="</think>" if self.thinks else "")

    # --- running --------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[list[Event], None]:
        """Generate all choices; yield what a stream sends of them, as it comes."""
        self.choices = [self._choice(i) for i in range(self.count)]
        whole = False
        try:
            several = self._several() if self.count > 1 else self._run(self.choices[0])
            async with aclosing(several) as events:
                async for event in events:
                    yield event
            whole = True
        finally:
            self._leave(whole)

    async def _several(self) -> AsyncGenerator[list[Event], None]:
        """The choices side by side."""
        queue: asyncio.Queue[list[Event] | Exception | None] = asyncio.Queue()
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

    def _leave(self, whole: bool) -> None:
        """Record what the conversation holds now. Of an answer that broke off, what the client
        was told of it: it may go on from there, or ask again."""
        made, special = self.prompted, self.params.show_special
        answers = tuple(self._answer(c, special) for c in self.choices if c.ids or whole)
        record = None
        if answers:
            record = Record(
                self.turn.continued(self._record, self.session.match),
                made.messages, made.prompt, packed(made.tokens), made.marks, answers, not whole,
            )  # fmt: skip
        self.context.sessions.finish(self.session, record)
        for choice in self.choices:
            if choice.usage is not None:
                self.context.timings.observe(choice.usage, choice.reason)

    def _answer(self, choice: Assembly, special: bool) -> Answer:
        message = Message.model_validate(choice.message)
        forms = [message]
        if not message.tool_calls:  # some clients put the stop string back
            stop = [self.asked.stop] if isinstance(self.asked.stop, str) else self.asked.stop or []
            text = message.content or ""
            forms += [message.model_copy(update={"content": text + s}) for s in stop]
        return Answer(
            tuple(map(read_entry, forms)), message.rendered(), packed(choice.ids),
            "".join(choice.text), self.reader, bool(self.calls.tools), special,
        )  # fmt: skip

    def _choice(self, index: int) -> Assembly:
        turn = f"{self.id}/{index}"
        spell = self._spell if self.params.logprobs else None
        calls, several = bool(self.calls.tools), self.calls.several
        parser = self.reader(turn)
        return Assembly(index, turn, parser, calls=calls, several=several, spell=spell)

    def _spell(self, token: int) -> str:
        return self.context.tokenizer.decode([token], special=True)

    async def _run(self, choice: Assembly) -> AsyncGenerator[list[Event], None]:
        stream = self.context.sessions.generate(
            self.session, self.params, self.grammar, choice.index, lambda: choice.enough
        )
        conversation = self.session.conversation
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                known = len(choice.kinds)
                chunks = choice.feed(delta)
                conversation.tool = choice.tool or conversation.tool
                conversation.call_kinds += choice.kinds[known:]
                yield chunks

    async def _queue(
        self, choice: Assembly, queue: "asyncio.Queue[list[Event] | Exception | None]"
    ) -> None:
        try:
            async with aclosing(self._run(choice)) as answered:
                async for event in answered:
                    queue.put_nowait(event)
        except Exception as error:
            queue.put_nowait(error)
        finally:
            queue.put_nowait(None)

    # --- whole, or in parts ---------------------------------------------------------------

    async def whole(self) -> Event:
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        choices = [choice.whole() for choice in self.choices]
        return self._about("chat.completion") | {"choices": choices, "usage": self.usage()}

    async def chunks(self) -> AsyncGenerator[Event, None]:
        about = self._about("chat.completion.chunk")
        async with aclosing(self.events()) as events:
            async for chunks in events:
                for chunk in chunks:
                    yield about | {"choices": [chunk]}
        options = self.asked.stream_options
        if options is not None and options.include_usage:
            yield about | {"choices": [], "usage": self.usage()}

    @property
    def program(self) -> str:
        """What the client calls its program."""
        return self.session.program.label

    def _about(self, kind: str) -> Event:
        about = {"id": self.id, "object": kind, "created": self.created}
        return about | {"model": self.context.model, "program_id": self.program}

    def usages(self) -> list[RequestUsage]:
        """Return the usage of each choice that was computed to its end."""
        return [c.usage for c in self.choices if c.usage is not None]

    def usage(self) -> Event:
        return usage(self.usages())


def _reader(
    format: str, offered: frozenset[str], thinks: bool, inside: bool, turn: str = ""
) -> Parser:
    """Make a parser for an answer that may call these tools. It is kept with the answer, so it
    refers to nothing of the request."""
    if offered:
        return make_parser(format, turn, reasoning=thinks, inside=inside, offered=offered)
    plain = PlainParser()
    return ReasoningParser(plain, inside) if thinks else plain


def _check_size(asked: ChatRequest, context: ServingContext) -> None:
    """Refuse what cannot fit, before anything is rendered."""
    if sum(len(message.content or "") for message in asked.messages) > context.prompter.most_bytes:
        raise context_too_long(None, context.max_context, "messages")


def usage(found: list[RequestUsage]) -> Event:
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


__all__ = ["ChatCompletion", "Event", "ServingContext", "usage"]
