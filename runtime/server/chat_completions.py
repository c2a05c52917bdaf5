"""Chat completions: from a request to its answer, whole or streamed."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

from drawloom.engine.api.engine import Grammar, RequestUsage
from drawloom.engine.sequence import SamplingParams
from drawloom.errors import ConfigError, ContextTooLong
from drawloom.ids import new_id
from drawloom.runtime.server import openai_encoding as encoding
from drawloom.runtime.server.answer import Answer, PlainParser, Update
from drawloom.runtime.server.conversation import ChatTurn, Record, RecordedAnswer, packed
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.errors import HttpError, context_too_long
from drawloom.runtime.server.history import read_entry
from drawloom.runtime.server.openai_encoding import JsonObject
from drawloom.runtime.server.openai_requests import ChatRequest, Message
from drawloom.runtime.server.prompting import BuiltPrompt, in_pool
from drawloom.runtime.server.serving_context import ServingContext
from drawloom.runtime.server.session import Session
from drawloom.runtime.server.toolspecs import calls_of
from drawloom.tools.forced_call_grammar import call_grammar, call_mark
from drawloom.tools.parsers import (
    Parser,
    ReasoningParser,
    make_parser,
    needs_special,
    opens_thought,
)

_Item = tuple[int, Update] | Exception | None


class ChatStep:
    """Run one chat completion in the session that `open` gives it.

    Attributes:
        session: its program and conversation.
        prompt: its prompt and tokens.
        choices: its answers, as far as they are generated.
    """

    session: Session
    prompt: BuiltPrompt
    _turn: ChatTurn
    _params: SamplingParams
    _grammar: Grammar | None
    _parser: partial[Parser]

    def __init__(self, context: ServingContext, request: ChatRequest) -> None:
        self._context, self._request = context, request
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        context.check_model(request.model)
        _check_size(request, context)
        self._calls = calls_of(request.tools, request.tool_choice, request.parallel_tool_calls)
        self.choices: list[Answer] = []
        self._complete = self._finished = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls, context: ServingContext, request: ChatRequest, caller: Caller
    ) -> AsyncIterator["ChatStep"]:
        """Check a request, open its session, build its prompt and announce it to the scheduler.

        The session is finished when all choices are generated, at the latest when the block is
        left.

        Raises:
            HttpError: the request is invalid, or its prompt does not fit into the context.
        """
        step = cls(context, request)
        step._turn = await in_pool(ChatTurn.read, request.messages)
        step.session = context.sessions.begin(caller, step._turn)
        try:
            await step._prepare()
            yield step
        finally:
            step._finish()

    # --- before the call ------------------------------------------------------------------

    async def _prepare(self) -> None:
        context, session, request = self._context, self.session, self._request
        shown = [tool.schema_for_model() for tool in request.tools or []]
        try:
            self.prompt = await in_pool(
                context.prompts.build, self._turn, shown, self._record, session.match
            )
        except ContextTooLong:
            raise context_too_long(None, context.max_context, "messages") from None
        except ConfigError as error:
            raise HttpError(400, str(error), param="messages") from None
        session.tokens = self.prompt.tokens
        inside = opens_thought(self.prompt.prompt)
        reasons = context.reasoning or inside
        offered = frozenset(tool.function.name for tool in self._calls.tools)
        self._parser = partial(_make_parser, context.template.calls, offered, reasons, inside)
        self._grammar = self._choose_grammar(reasons)
        self._params = self._sampling_params(reasons)
        output = request.max_completion_tokens or request.max_tokens or 0
        context.sessions.submit(session, self.prompt.known, request.priority or 0, output)

    @property
    def _record(self) -> Record | None:
        return self.session.record if isinstance(self.session.record, Record) else None

    def _sampling_params(self, reasons: bool) -> SamplingParams:
        request, context = self._request, self._context
        if request.max_completion_tokens is not None:
            request.max_tokens = request.max_completion_tokens
        if not self.session.tokens:
            raise HttpError(400, "the chat template makes no prompt of this", param="messages")
        room = context.max_context - len(self.session.tokens)
        if room < 1:
            raise context_too_long(len(self.session.tokens), context.max_context, "messages")
        format = context.template.calls if self._calls.tools else ""
        return request.params(
            room,
            context.tokenizer.size,
            self._banned(),
            logprobs=bool(request.logprobs),
            top_logprobs=request.top_logprobs or 0,
            show_special=needs_special(format, reasons, context.tokenizer.hides),
        )

    def _banned(self) -> tuple[int, ...]:
        """Return the token that begins a call, if the prompt shows tools but none may be called."""
        if self._calls.tools or not self._request.tools:
            return ()
        mark = self._context.tokenizer.id_of(call_mark(self._context.template.calls))
        return () if mark is None else (mark,)

    def _choose_grammar(self, reasons: bool) -> Grammar | None:
        """Return the grammar of a required call, or of the response format."""
        if not self._calls.required:
            format = self._request.response_format
            return format.grammar() if format is not None else None
        functions = [tool.function.model_dump() for tool in self._calls.tools]
        id_of = self._context.tokenizer.id_of
        try:
            lark = call_grammar(
                self._context.template.calls,
                functions,
                self._calls.several,
                lambda mark: id_of(mark) is not None,
            )
        except ConfigError as error:
            raise HttpError(400, str(error), param="tool_choice") from None
        return Grammar("lark", lark, after="</think>" if reasons else "")

    # --- generating -----------------------------------------------------------------------

    async def _generate(self) -> AsyncGenerator[tuple[int, Update], None]:
        """Generate all choices concurrently; yield updates with the index of their choice."""
        self.choices = [self._new_answer(index) for index in range(self._request.choices)]
        try:
            several = len(self.choices) > 1
            source = self._merge() if several else self._generate_one(self.choices[0])
            async with aclosing(source) as updates:
                async for update in updates:
                    yield update
            self._complete = True
        finally:
            # before the client is told of the end: its next request continues this conversation
            self._finish()

    async def _generate_one(self, answer: Answer) -> AsyncGenerator[tuple[int, Update], None]:
        stream = self._context.sessions.generate(
            self.session, self._params, self._grammar, answer.index, lambda: answer.call_done
        )
        conversation = self.session.conversation
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                known = len(answer.call_kinds)
                update = answer.feed(delta)
                conversation.tool = answer.tool or conversation.tool
                conversation.call_kinds += answer.call_kinds[known:]
                yield answer.index, update

    async def _merge(self) -> AsyncGenerator[tuple[int, Update], None]:
        queue: asyncio.Queue[_Item] = asyncio.Queue()
        tasks = [asyncio.create_task(self._fill(queue, answer)) for answer in self.choices]
        try:
            running = len(tasks)
            while running:
                item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fill(self, queue: asyncio.Queue[_Item], answer: Answer) -> None:
        try:
            async with aclosing(self._generate_one(answer)) as updates:
                async for update in updates:
                    queue.put_nowait(update)
        except Exception as error:
            queue.put_nowait(error)
        finally:
            queue.put_nowait(None)

    def _new_answer(self, index: int) -> Answer:
        turn = f"{self.id}/{index}"
        return Answer(
            index,
            turn,
            self._parser(turn),
            calls=bool(self._calls.tools),
            several=self._calls.several,
            token_text=self._token_text if self._params.logprobs else None,
        )

    def _token_text(self, token: int) -> str:
        return self._context.tokenizer.decode([token], special=True)

    # --- after the call -------------------------------------------------------------------

    def _finish(self) -> None:
        """Finish the session and record the conversation; a second call does nothing.

        Of an interrupted answer the part that the client received is recorded: it may continue
        from there, or ask again.
        """
        if self._finished:
            return
        self._finished = True
        sampled = tuple(
            self._recorded(answer) for answer in self.choices if answer.tokens or self._complete
        )
        record = None
        if sampled:
            built = self.prompt
            record = Record(
                entries=self._turn.continued(self._record, self.session.match),
                messages=built.messages,
                prompt=built.prompt,
                tokens=packed(built.tokens),
                boundaries=built.boundaries,
                answers=sampled,
                broken=not self._complete,
            )
        self._context.sessions.finish(self.session, record)
        for answer in self.choices:
            if answer.usage is not None:
                self._context.timings.observe(answer.usage, answer.finish_reason)

    def _recorded(self, answer: Answer) -> RecordedAnswer:
        message = Message.model_validate(encoding.message(answer))
        forms = [message]
        if not message.tool_calls:  # some clients append the stop string to the answer
            stop = self._request.stop or []
            text = message.content or ""
            forms += [message.model_copy(update={"content": text + s}) for s in stop]
        return RecordedAnswer(
            entries=tuple(map(read_entry, forms)),
            message=message.rendered(),
            tokens=packed(answer.tokens),
            text=answer.text,
            parser=self._parser,
            calls=bool(self._calls.tools),
            special=self._params.show_special,
        )

    # --- encoding -------------------------------------------------------------------------

    async def whole(self) -> JsonObject:
        """Generate the answer and return it as one JSON object."""
        async with aclosing(self._generate()) as updates:
            async for _ in updates:
                pass
        choices = [encoding.chat_choice(answer) for answer in self.choices]
        about = self._about("chat.completion")
        return about | {"choices": choices, "usage": encoding.usage(self.usages())}

    async def chunks(self) -> AsyncGenerator[JsonObject, None]:
        """Generate the answer; yield the JSON objects of its stream."""
        about = self._about("chat.completion.chunk")
        async with aclosing(self._generate()) as updates:
            async for index, update in updates:
                for choice in encoding.chat_chunk_choices(index, update):
                    yield about | {"choices": [choice]}
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield about | {"choices": [], "usage": encoding.usage(self.usages())}

    @property
    def program(self) -> str:
        """Return the program's name for its client."""
        return self.session.program.label

    def usages(self) -> list[RequestUsage]:
        """Return the usage of each choice that is complete."""
        return [answer.usage for answer in self.choices if answer.usage is not None]

    def _about(self, kind: str) -> JsonObject:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self._context.model,
            "program_id": self.program,
        }


def _make_parser(
    format: str, offered: frozenset[str], reasons: bool, inside: bool, turn: str = ""
) -> Parser:
    """Return a parser for an answer.

    A partial of this function is kept with the recorded answer, so it holds no request.

    Args:
        format: the template's format of calls.
        offered: names of the tools that may be called.
        reasons: the answer may begin with reasoning.
        inside: the prompt has opened the reasoning already.
        turn: unique name of the turn, from which call ids are derived.
    """
    if offered:
        return make_parser(format, turn, reasoning=reasons, inside=inside, offered=offered)
    plain = PlainParser()
    return ReasoningParser(plain, inside) if reasons else plain


def _check_size(request: ChatRequest, context: ServingContext) -> None:
    """Refuse messages that cannot fit into the context, before they are rendered."""
    size = sum(len(message.content or "") for message in request.messages)
    if size > context.prompts.most_bytes:
        raise context_too_long(None, context.max_context, "messages")


__all__ = ["ChatStep"]
