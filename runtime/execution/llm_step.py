"""LLM call of a program: parsed as it streams, and recorded."""

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from drawloom.engine.api.engine import Grammar, RequestUsage
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.errors import EngineError
from drawloom.runtime.dispatch.step_driver import LlmStepSpec, RunningStep, run_llm_step
from drawloom.runtime.execution.program import Program
from drawloom.runtime.execution.replay import check_prompt
from drawloom.runtime.scheduler.events import ToolNamed
from drawloom.runtime.store.error_json import can_record, record_error, restore_error
from drawloom.runtime.store.result_json import decode, encode
from drawloom.runtime.store.store import StepRow
from drawloom.tools.parsers import (
    CLOSE,
    Closed,
    Named,
    Piece,
    Text,
    make_parser,
    needs_special,
)
from drawloom.tools.tool_call import ToolCall

_ENGINE_TRIES = 2


@dataclass(frozen=True, slots=True)
class Turn:
    """Hold one answer of the model.

    Args:
        text: the text for the reader.
        calls: tool calls, for `Chat.run`.
        finish: why the answer ended.
        ids: the sampled tokens.
        logprobs: their log-probabilities, if these were asked for.
        prompt_tokens: tokens of the prompt.
        cached_tokens: prompt tokens that were in the KV cache.
    """

    text: str
    calls: tuple[ToolCall, ...]
    finish: FinishReason
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0


class LlmCall:
    """Run, parse and record one LLM call of a conversation.

    Args:
        program: the program.
        name: name of the conversation within the program.
        key: key of the step.
        state: node of the execution graph.
        prompt: all tokens of the conversation.
        fresh: those of them that are new.
        params: sampling parameters.
        push: takes text as it comes.
        start_early: takes calls that may run before the answer has ended.
        grammar: what the answer must match.
        thinks: the prompt ends within a thought.
    """

    def __init__(
        self,
        program: Program,
        name: str,
        key: str,
        state: str,
        prompt: list[int],
        fresh: list[int],
        params: SamplingParams,
        push: Callable[[str], None] | None,
        start_early: Callable[[ToolCall], None],
        grammar: Grammar | None = None,
        thinks: bool = False,
    ) -> None:
        self.program, self.name, self.key, self.state = program, name, key, state
        self.prompt, self.fresh = prompt, fresh
        self.push, self.start_early, self.thinks = push, start_early, thinks
        if thinks and grammar is not None and not grammar.after:
            grammar = replace(grammar, after=CLOSE)
        self.grammar = grammar
        account = program.account
        account.before_llm()
        self.format = program.template.calls
        self.params = replace(
            params,
            max_tokens=max(1, account.output_left(params.max_tokens)),
            show_special=needs_special(
                self.format, thinks, program.dispatcher.engine.tokenizer.hides
            ),
        )
        self.clear()

    def clear(self) -> None:
        """Forget what was generated: the engine failed, and the call is tried again."""
        names = {tool.name for tool in self.program.agent.tools}
        self.parser = make_parser(self.format, self.key, inside=self.thinks, offered=names)
        self.text = ""
        self.calls: list[ToolCall] = []
        self.output: list[int] = []
        self.logprobs: list[float] = []
        self.finish = FinishReason.STOP

    async def run(self) -> Turn:
        """Run the call, record it and return the answer.

        Raises:
            EngineError: the engine failed twice, or refused the call.
            BudgetExceeded: the program has no call left.
        """
        program, dispatcher = self.program, self.program.dispatcher
        ready = time.time()
        spec = LlmStepSpec(
            program=program.id,
            conversation=program.full(self.name),
            step=f"{program.id}:{self.key}",
            state=self.state,
            prompt=tuple(self.prompt),
            params=self.params,
            salt=program.agent.tenant.encode(),
            grammar=self.grammar,
        )
        dispatcher.note(program.id, "llm.queued", step=self.key)
        async with run_llm_step(dispatcher, spec) as step:
            await self._generate(step)
            for piece in self.parser.end():
                self._take(piece)
            await self._record(ready, step.usage)
            step.tool_kinds = tuple(call.kind for call in self.calls)
        return Turn(
            text=self.text,
            calls=tuple(self.calls),
            finish=self.finish,
            ids=tuple(self.output),
            logprobs=tuple(self.logprobs),
            prompt_tokens=len(self.prompt),
            cached_tokens=step.usage.cached_tokens if step.usage else 0,
        )

    async def _generate(self, step: RunningStep) -> None:
        """Stream from the engine; try once more where the engine failed."""
        for attempt in range(_ENGINE_TRIES):
            try:
                return await self._stream(step, f"{step.spec.step}:{attempt}")
            except EngineError as error:
                if attempt + 1 == _ENGINE_TRIES or type(error) is not EngineError:
                    raise
                self.clear()

    async def _stream(self, step: RunningStep, request: str) -> None:
        async with aclosing(step.stream(request=request)) as deltas:
            async for delta in deltas:
                if not self.output and delta.tokens:
                    self.program.dispatcher.note(self.program.id, "llm.decoding", step=self.key)
                self.output += delta.tokens
                self.logprobs += delta.logprobs
                for piece in self.parser.feed(delta.text):
                    self._take(piece)
                if delta.finish is not None:
                    self.finish = delta.finish

    def _take(self, piece: Piece) -> None:
        program = self.program
        if isinstance(piece, Text):
            self.text += piece.text
            if self.push is not None:
                self.push(piece.text)
        elif isinstance(piece, Named):
            tool = program.tool(piece.name)
            if tool is not None:
                key = tool.env.key if tool.env else None
                if key is not None and not tool.fresh and program.owner.branch is not None:
                    program.dispatcher.environments.claim_early(key, program.owner)
                else:
                    program.dispatcher.emit(ToolNamed(program.id, tool.name, key))
        elif isinstance(piece, Closed):
            self.calls.append(piece.call)
            self.start_early(piece.call)

    async def _record(self, ready: float, usage: RequestUsage | None) -> None:
        account = self.program.account.usage
        self.text = self.text.strip("\n") if self.calls else self.text
        shift = time.time() - time.monotonic()
        moments = ("submitted", "started", "first", "finished")
        times = {name: getattr(usage, name) + shift for name in moments} if usage else {}
        detail = {
            "conversation": self.name,
            "state": self.state,
            "delta": self.fresh,
            "output": self.output,
            "logprobs": self.logprobs,
            "seed": self.params.seed,
            "text": encode(self.text),
            "calls": [encode(_fields(call)) for call in self.calls],
            "finish": self.finish.value,
            "prompt": len(self.prompt),
            "cached": usage.cached_tokens if usage else 0,
            "times": times,
        }
        store = self.program.dispatcher.store
        await store.add_llm(self.program.id, self.key, ready, time.time(), detail)
        account.llm_calls += 1  # not before: of a call that has a record the replay counts it
        account.output_tokens += len(self.output)
        account.tokens += len(self.fresh) + len(self.output)
        self.program.dispatcher.note(self.program.id, "llm.finished", step=self.key)


def _fields(call: ToolCall) -> dict[str, Any]:
    return {name: getattr(call, name) for name in ToolCall.__slots__}


async def record_failure(
    program: Program, name: str, key: str, fresh: list[int], error: Exception
) -> None:
    """Record what a resumed program will see of an LLM call that failed."""
    if can_record(error):
        now = time.time()
        detail = {
            "conversation": name,
            "delta": fresh,
            "output": [],
            "text": "",
            "calls": [],
            "times": {},
            "error": record_error(error),
        }
        await program.dispatcher.store.add_llm(program.id, key, now, now, detail)


def replay_turn(program: Program, row: StepRow, fresh: list[int]) -> Turn:
    """Return the answer of a recorded LLM call, or raise its failure."""
    check_prompt(program, row, fresh)
    detail, usage = row.detail, program.account.usage
    if "error" in detail:
        raise restore_error(detail["error"])
    usage.llm_calls += 1
    usage.output_tokens += len(detail["output"])
    usage.tokens += len(fresh) + len(detail["output"])
    return Turn(
        text=str(decode(detail["text"])),
        calls=tuple(ToolCall(**decode(call)) for call in detail["calls"]),
        finish=FinishReason(detail["finish"]),
        ids=tuple(detail["output"]),
        logprobs=tuple(detail["logprobs"]),
        prompt_tokens=detail["prompt"],
        cached_tokens=detail["cached"],
    )


__all__ = ["LlmCall", "Turn", "record_failure", "replay_turn"]
