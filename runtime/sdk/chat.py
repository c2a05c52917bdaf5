"""`Chat`: one conversation of a program, and one conversation of KV."""

import asyncio
import dataclasses
import difflib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from drawloom.engine.api.engine import Grammar
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.errors import ConfigError, ToolError
from drawloom.graph.execution_graph import GraphState
from drawloom.prompts import Prompt
from drawloom.runtime.execution.llm_step import LlmCall, Turn, record_failure, replay_turn
from drawloom.runtime.execution.offload import offload
from drawloom.runtime.execution.program import running
from drawloom.runtime.execution.replay import settled
from drawloom.runtime.execution.result_shares import CHARS_PER_TOKEN, cut_results, room
from drawloom.runtime.execution.speculative_prefill import SpeculativePrefill
from drawloom.runtime.execution.tool_step import run_call
from drawloom.runtime.scheduler.events import Forked
from drawloom.runtime.store.store import RowExists
from drawloom.tools.chat_template import Message
from drawloom.tools.parsers import opens_thought
from drawloom.tools.tool_call import ToolCall, ToolResult

T = TypeVar("T")
_ANSWER_TRIES = 3
_OPTIONS = [field.name for field in dataclasses.fields(SamplingParams)]


class Chat:
    """Hold a conversation: messages are added with `user`, the model answers with `turn`.

    Its tokens are kept exactly as they were sampled; only what is new is ever tokenised, and only
    what the engine no longer holds is computed again. Must be made inside a running agent.
    """

    def __init__(self, system: str | None = None) -> None:
        self._program = running()
        self._name = self._program.scope.next()
        self._forks = self._turns = 0
        self._ids: list[int] = []
        self._closed = self._speaking = False
        self._early: dict[str, asyncio.Task[ToolResult]] = {}
        self._last_tool = ""
        self._schemas = [t.schema for t in self._program.agent.tools]
        system = self._program.agent.system if system is None else system
        self._new: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[Turn] = []

    @property
    def conversation(self) -> str:
        """Return the id of the conversation for engine and scheduler."""
        return self._program.full(self._name)

    @property
    def ids(self) -> tuple[int, ...]:
        """Return all tokens so far: prompts and answers, as the model saw them."""
        return tuple(self._ids)

    def user(self, text: str) -> "Chat":
        """Add a message of the user."""
        self._new.append({"role": "user", "content": text})
        return self

    def turn(self, **options: Any) -> Awaitable[Turn]:
        """Let the model speak. Options are those of `SamplingParams`.

        Raises `BudgetExceeded`, `ContextTooLong`, `EngineError`.
        """
        return self._turn(self._key(), _site(2), options, None)

    def stream(self, **options: Any) -> "TurnStream":
        """Like `turn`, but iterate over its text as it comes; `.turn` is there at the end."""
        key, site = self._key(), _site(2)
        return TurnStream(lambda push: self._turn(key, site, options, push))

    async def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Run the model's tool calls at the same time and add the results to the conversation.

        A call that fails is answered with its error. What is too long for the model's context is
        cut: all results together have at most a quarter of it (or 1,024 tokens), and two thirds
        of what is left.

        Raises:
            BudgetExceeded: the calls are more than the budget allows; none has started.
            ConfigError: an id has characters that cannot be printed.
        """
        for call in calls:
            if not call.id.isprintable():  # it is a key of the store, which not every one takes
                raise ConfigError(f"tool call id {call.id!r} has characters that cannot be printed")
        program, total = self._program, await self._room()
        program.account.before_tools(sum(c.id not in self._early for c in calls))
        prefill: SpeculativePrefill | None = None
        if self._streams(calls):
            most = total // len(calls) * CHARS_PER_TOKEN
            prefill = SpeculativePrefill(program, self.conversation, calls, self._begun, most)
        jobs = [
            self._early.pop(c.id)
            if c.id in self._early
            else program.spawn(
                run_call(program, self._name, c, prefill.outputs[place] if prefill else None)
            )
            for place, c in enumerate(calls)
        ]
        try:
            results = await cut_results(await asyncio.gather(*jobs), total, self._count)
        finally:
            if prefill is not None:
                prefill.close()
        for result in results:
            content = {"role": "tool", "content": result.content, "name": result.name}
            self._new.append(content | {"tool_call_id": result.call_id})
        self._last_tool = "+".join(sorted({c.name for c in calls}))
        return results

    @overload
    def ask(self, text: str, kind: type[T], **options: Any) -> Awaitable[T]: ...
    @overload
    def ask(self, text: str, **options: Any) -> Awaitable[str]: ...
    def ask(self, text: str, kind: Any = str, **options: Any) -> Awaitable[Any]:
        """Ask for an answer of a type, such as a pydantic model or a list.

        The model can say nothing that its JSON schema forbids. What a schema cannot say, or an
        answer that broke off, is sent back with what is wrong, twice; then `ToolError`.
        """
        return self._ask(text, kind, _site(2), options)

    def fork(self, n: int = 2) -> list["Chat"]:
        """`n` conversations that continue this one; what is behind them is shared, not copied."""
        if n < 1 or self._speaking:
            raise ConfigError(f"fork({n}): at least one branch, and not in the middle of a turn")
        return [self._child() for _ in range(n)]

    def close(self) -> None:
        """Say that nobody will continue this conversation: its KV is free at once."""
        for task in self._early.values():
            task.cancel()
        self._program.end_conversation(self._name)

    # --- turns ----------------------------------------------------------------------------

    def _key(self) -> str:
        self._turns += 1
        return f"{self._name}#{self._turns - 1}"

    async def _turn(
        self,
        key: str,
        site: str,
        options: dict[str, Any],
        push: Callable[[str], None] | None,
        grammar: Grammar | None = None,
    ) -> Turn:
        if self._speaking:
            raise ConfigError("this chat is in the middle of a turn: wait for it, or fork the chat")
        self._speaking, sent = True, len(self._new)
        try:
            turn, fresh = await self._speak(key, site, options, push, grammar, self._new[:sent])
        finally:
            self._speaking = False
        self._ids += [*fresh, *turn.ids]
        self._closed = turn.finish is FinishReason.STOP
        self._new = self._new[sent:]
        self.turns.append(turn)
        return turn

    async def _speak(
        self,
        key: str,
        site: str,
        options: dict[str, Any],
        push: Callable[[str], None] | None,
        grammar: Grammar | None,
        new: list[Message],
    ) -> tuple[Turn, list[int]]:
        prompt, fresh = await self._tokenise(new)
        row = self._program.recorded(key, "llm", "llm")
        if row is None:
            await self._program.may_begin()
            state = str(GraphState(site, self._last_tool))
            try:
                turn = await LlmCall(
                    self._program,
                    self._name,
                    key,
                    state,
                    prompt=[*self._ids, *fresh],
                    fresh=fresh,
                    params=self._params(options),
                    push=push,
                    start_early=self._start_early,
                    grammar=grammar,
                    thinks=opens_thought(prompt),
                ).run()
                return turn, fresh
            except RowExists:
                row = await settled(self._program, key)
            except Exception as error:
                await record_failure(self._program, self._name, key, fresh, error)
                raise
        turn = replay_turn(self._program, row, fresh)
        if push is not None:
            push(turn.text)
        return turn, fresh

    def _start_early(self, call: ToolCall) -> None:
        """Start a readonly tool while the model still writes; any other waits for the turn."""
        program = self._program
        tool, account = program.tool(call.name), program.account
        if tool is None or not tool.readonly or call.error is not None:
            return
        limit = account.budget.tool_calls
        if limit is not None and account.usage.tool_calls + len(self._early) >= limit:
            return
        self._early[call.id] = program.spawn(run_call(program, self._name, call))

    async def _tokenise(self, new: list[Message]) -> tuple[Prompt, list[int]]:
        if not new:
            raise ConfigError("nothing is new in this chat: add .user(…) or .run(calls) first")
        template, tokenizer = self._program.template, self._program.dispatcher.engine.tokenizer
        said, closed, schemas = bool(self._ids), self._closed, self._schemas
        now = self._program.now

        def work() -> tuple[Prompt, list[int]]:
            if said:
                prompt = template.delta(new, schemas, closed, now=now)
            else:
                prompt = template.render(new, schemas, now=now)
            return prompt, tokenizer.encode(prompt)

        return await offload(work, _size(new))

    async def _room(self) -> int:
        """Return how many tokens the results of the next calls may have."""
        about, answer = self._program.dispatcher.engine.info, self._program.agent.max_tokens
        known = len(self._ids)
        texts = [str(message.get("content") or "") for message in self._new]
        if not known:
            texts.append(json.dumps(self._schemas))

        def work() -> int:
            return room(about, known + sum(map(self._count, texts)), answer)

        return await offload(work, sum(map(len, texts)))

    def _count(self, text: str) -> int:
        """Return how many tokens a text has as the content of a message."""
        content = Prompt(text, ((0, len(text)),))
        return len(self._program.dispatcher.engine.tokenizer.encode(content))

    def _streams(self, calls: Sequence[ToolCall]) -> bool:
        """Return whether the output of these calls can be prefilled before they end."""
        tools = [self._program.tool(c.name) for c in calls if c.id not in self._early]
        streams = any(tool is not None and tool.streams for tool in tools)
        return streams and len(tools) == len(calls) and bool(self._ids)

    async def _begun(self, results: list[Message]) -> list[int]:
        """Return all tokens so far, with those that the next prompt is sure to add."""
        template, tokenizer = self._program.template, self._program.dispatcher.engine.tokenizer
        new, closed, now = [*self._new, *results], self._closed, self._program.now

        def work() -> list[int]:
            return tokenizer.settled(template.begun(new, self._schemas, closed, now))

        return [*self._ids, *await offload(work, _size(new))]

    def _params(self, options: dict[str, Any]) -> SamplingParams:
        agent = self._program.agent
        for name in options:
            if name not in _OPTIONS:
                near = difflib.get_close_matches(name, _OPTIONS, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_OPTIONS)}"
                raise ConfigError(f"a turn has no option {name!r}: {hint}")
        chosen = {"max_tokens": agent.max_tokens, "temperature": agent.temperature} | options
        return SamplingParams(**chosen)

    async def _ask(self, text: str, kind: Any, site: str, options: dict[str, Any]) -> Any:
        if kind is str:
            return (await self.user(text)._turn(self._key(), site, options, None)).text
        adapter = TypeAdapter(kind)
        schema = json.dumps(adapter.json_schema())
        grammar: Grammar | None = Grammar("json_schema", schema)
        self.user(f"{text}\n\nAnswer with JSON only, by this schema: {schema}")
        problem = ""
        for _ in range(_ANSWER_TRIES):
            try:
                turn = await self._turn(self._key(), site, options, None, grammar)
            except ConfigError:  # a schema that no grammar can be made of: ask without one
                if grammar is None:
                    raise
                grammar = None
                turn = await self._turn(self._key(), site, options, None)
            try:
                return adapter.validate_json(_json_part(turn.text))
            except ValidationError as error:
                problem = "; ".join(e["msg"] for e in error.errors()[:5])
                self.user(f"That does not fit the schema: {problem}. Answer with JSON only.")
        raise ToolError(f"the model gave no {getattr(kind, '__name__', kind)}: {problem}")

    def _child(self) -> "Chat":
        child = object.__new__(Chat)
        child.__dict__ |= self.__dict__
        child._name = f"{self._name}.{self._forks}"
        self._forks += 1
        child._forks = child._turns = 0
        child._speaking = False
        child._ids, child._new = list(self._ids), list(self._new)
        child._early, child.turns = {}, list(self.turns)
        dispatcher = self._program.dispatcher
        dispatcher.emit(
            Forked(
                self._program.id, self.conversation, child.conversation, dispatcher.engine.info.id
            )
        )
        dispatcher.fork(self.conversation, child.conversation)
        return child


class TurnStream:
    """Iterate over the text of a turn as it comes.

    Attributes:
        turn: the whole turn, at the end.
    """

    def __init__(self, start: Callable[[Callable[[str], None]], Awaitable[Turn]]) -> None:
        self._start = start
        self.turn: Turn | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        task = asyncio.ensure_future(self._start(queue.put_nowait))
        task.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (text := await queue.get()) is not None:
                yield text
            self.turn = await task
        finally:
            task.cancel()


def _size(messages: list[Message]) -> int:
    return sum(len(str(message.get("content"))) for message in messages)


def _site(depth: int) -> str:
    """Return the caller as ``function:line``: its node in the execution graph."""
    frame = sys._getframe(depth)
    return f"{frame.f_code.co_qualname}:{frame.f_lineno}"


def _json_part(text: str) -> str:
    """Return the JSON of an answer, which may stand in a code fence or between words."""
    fence = text.split("```")
    if len(fence) >= 3:
        text = fence[1].removeprefix("json")
    starts = [i for i in (text.find("{"), text.find("[")) if i >= 0]
    ends = max(text.rfind("}"), text.rfind("]"))
    return text[min(starts) : ends + 1] if starts and ends > 0 else text.strip()


__all__ = ["Chat", "Turn", "TurnStream"]
