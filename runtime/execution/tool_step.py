"""Running a tool as a step: intent first, then the environment, the call, the result."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from drawloom.errors import (
    DrawloomError,
    SandboxDied,
    SandboxError,
    ToolError,
    ToolInterrupted,
    ToolTimeout,
)
from drawloom.runtime.execution.blocking import watch
from drawloom.runtime.execution.contain import contained, in_own_task
from drawloom.runtime.execution.env_progress import Progress
from drawloom.runtime.execution.program import Program
from drawloom.runtime.execution.replay import check_arguments, record_value, replay_direct, settled
from drawloom.runtime.execution.speculative_prefill import Heard
from drawloom.runtime.execution.step_sandbox import StepSandbox
from drawloom.runtime.scheduler.events import ToolFinished, ToolStarted
from drawloom.runtime.store.error_json import record_error, restore_error
from drawloom.runtime.store.result_json import decode, describe, encode
from drawloom.runtime.store.store import RowExists, StepRow
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.tools.results import (
    MAX_CHARS,
    cut_chars,
    describe_error,
    render,
    valid_text,
)
from drawloom.tools.tool import Tool, tool_host
from drawloom.tools.tool_call import ToolCall, ToolResult

_HOSTS = 3  # a call that may be repeated outlives the loss of two environments
_GRACE = 2.0  # an exec's own timeout comes first, so that the tool sees what was printed
log = logging.getLogger("drawloom.runtime")


async def run_call(
    program: Program, conversation: str, call: ToolCall, heard: Heard | None = None
) -> ToolResult:
    """Run what a model asked for. Whatever goes wrong is told to the model, never raised. `heard`
    is told what the model will surely be shown, as soon as that is known."""
    result = await _result(program, conversation, call, heard)
    if heard is not None:
        heard.end(result.content)
    return result


async def _result(
    program: Program, conversation: str, call: ToolCall, heard: Heard | None
) -> ToolResult:
    row = _recorded(program, call)
    if row is not None and row.status == "done":
        return _replayed(program, row)
    tool = program.tool(call.name)
    if call.error is not None or tool is None:
        known = ", ".join(t.name for t in program.agent.tools) or "none"
        reason = call.error or f"there is no tool {call.name!r}; there are: {known}"
        return ToolResult(call.id, call.name, valid_text(f"error: {reason}"), ok=False)
    await program.may_begin(row)
    try:
        value, seconds = await ToolStep(program, conversation, tool, call, row, heard).run()
    except RowExists:
        await settled(program, call.id)
        return await _result(program, conversation, call, heard)
    except _Failed as failure:
        return ToolResult(call.id, call.name, failure.content, False, failure.seconds)
    return ToolResult(call.id, call.name, _cut(render(value), tool), True, seconds)


async def run_direct(program: Program, tool: Tool[..., Any], call: ToolCall) -> Any:
    """Run a tool that agent code called. Its value is returned, its failure raised."""
    row = _recorded(program, call)
    if row is not None and row.status == "done":
        program.account.usage.tool_calls += 1
        return replay_direct(program, tool, row)
    await program.may_begin(row)
    program.account.before_tools(1)
    try:
        return (await ToolStep(program, "", tool, call, row, direct=True).run())[0]
    except RowExists:
        await settled(program, call.id)
        return await run_direct(program, tool, call)
    except _Failed as failure:
        raise failure.error from None


def _recorded(program: Program, call: ToolCall) -> StepRow | None:
    row = program.recorded(call.id, "tool", call.name)
    if row is not None:
        check_arguments(program, row, describe(call.arguments))
    return row


def _replayed(program: Program, row: StepRow) -> ToolResult:
    program.account.usage.tool_calls += 1
    content = str(decode(row.detail["content"]))
    return ToolResult(row.key, row.name, content, row.detail["ok"], row.detail["seconds"])


class _Failed(Exception):
    """A tool failed for good; it is recorded."""

    def __init__(self, error: Exception, seconds: float) -> None:
        self.error = error
        self.content = _error_text(error)
        self.seconds = seconds


class ToolStep:
    """One tool call from its intent to its record; `row` is what a killed predecessor left. Of a
    `direct` call the result is recorded, of a model's what the model is shown."""

    def __init__(
        self,
        program: Program,
        conversation: str,
        tool: Tool[..., Any],
        call: ToolCall,
        row: StepRow | None,
        heard: Heard | None = None,
        *,
        direct: bool = False,
    ) -> None:
        self.program, self.conversation, self.tool, self.call = program, conversation, tool, call
        self._row, self._heard, self._direct = row, heard, direct
        self._intent = {"arguments": describe(call.arguments), "conversation": conversation}
        self._progress = Progress(self._mark if self._is_entered_again() else None)
        self._wait = 0.0
        self._box: StepSandbox | None = None

    async def run(self) -> tuple[Any, float]:
        """Its value and its seconds. Raises `_Failed` when it failed and that is recorded."""
        # its environment stays until its result is in the store
        async with contextlib.AsyncExitStack() as held:
            return await self._recorded(held)

    async def _recorded(self, held: contextlib.AsyncExitStack) -> tuple[Any, float]:
        program, tool, call = self.program, self.tool, self.call
        dispatcher, full = program.dispatcher, program.full(self.conversation)
        program.account.usage.tool_calls += 1
        if self._row is None:
            try:
                await dispatcher.store.intend(program.id, call.id, tool.name, self._intent)
            except RowExists:  # its replay counts it
                program.account.usage.tool_calls -= 1
                raise
        dispatcher.emit(
            ToolStarted(program.id, full, tool.name, tool.env.key if tool.env else None)
        )
        dispatcher.note(program.id, "tool.started", tool=tool.name, step=call.id)
        began = time.monotonic()
        value, error, outcome = None, None, dict[str, Any]()
        try:
            await self._refuse_repetition()
            value = await self._anywhere(held)
            if self._direct:
                outcome["value"], value = record_value(tool, value)
        except Exception as failure:
            error = failure
            if self._direct:
                outcome, error = self._failed(failure)
        seconds = time.monotonic() - began
        outcome |= {"ok": error is None, "seconds": seconds, "env_wait": self._wait}
        if not self._direct:
            content = _error_text(error) if error else _cut(render(value), tool)
            outcome["content"] = encode(content)
        await dispatcher.store.end_tool(program.id, call.id, self._intent | outcome)
        if self._box is not None:
            with contextlib.suppress(SandboxDied):  # the next call of the program will say so
                await self._box.forget()
        dispatcher.emit(ToolFinished(program.id, full, tool.name, seconds))
        dispatcher.note(program.id, "tool.finished", tool=tool.name, step=call.id, ok=error is None)
        if error is not None:
            raise _Failed(error, seconds)
        return value, seconds

    @staticmethod
    def _failed(failure: Exception) -> tuple[dict[str, Any], Exception]:
        """The record of a failure, and the error as a resumed program will see it."""
        mine = failure if isinstance(failure, DrawloomError) else ToolError(_words(failure))
        record = record_error(mine)
        error = restore_error(record).with_traceback(failure.__traceback__)
        return {"error": record}, error

    async def _refuse_repetition(self) -> None:
        """A step that was in flight when its process died runs again only where that is known to
        be harmless: the tool says so, or its environment was adopted and all that the call did
        there was to wait for its first command."""
        tool, row = self.tool, self._row
        if row is None or tool.idempotent:
            return
        in_place = tool.env is not None and not tool.fresh and self.program.adopted
        if in_place and not row.detail.get("acted"):
            return
        if in_place:
            with contextlib.suppress(SandboxError):  # then nothing of it runs on
                await self._end_commands()
        raise ToolInterrupted(
            "interrupted: the process died during this call, its outcome is unknown"
        )

    async def _end_commands(self) -> None:
        """A command that was in flight must not go on behind what follows."""
        env, program = self.tool.env, self.program
        assert env is not None
        async with program.dispatcher.environments.use(env, program.owner) as claimed:
            step = self._in_step(claimed.box)
            for name, _ in env.sidecars:
                await step.sidecar(name).end_commands()
            await step.end_commands()

    def _in_step(self, box: LiveSandbox) -> StepSandbox:
        step = f"{self.program.id}:{self.call.id}"
        return StepSandbox(box, step, self.tool.timeout, self._progress)

    def _is_entered_again(self) -> bool:
        """Whether a resumed program might enter this call's code again, unless it is marked."""
        tool, pool = self.tool, self.program.dispatcher.pool
        if tool.env is None or tool.fresh or tool.idempotent or pool is None:
            return False
        return pool.provider.keeps_running

    async def _mark(self) -> None:
        detail = self._intent | {"acted": True}
        await self.program.dispatcher.store.note_intent(self.program.id, self.call.id, detail)

    async def _anywhere(self, held: contextlib.AsyncExitStack) -> Any:
        """In an environment, and in another one when that dies, where nothing is lost by it: the
        call may be repeated and no earlier one left files there."""
        tool, program = self.tool, self.program
        if tool.env is None:
            return await self._attempts()
        environments = program.dispatcher.environments
        for _ in range(_HOSTS):
            asked = time.monotonic()
            owner = program.id if tool.fresh else program.owner
            use = environments.fresh if tool.fresh else environments.use
            claimed = await held.enter_async_context(use(tool.env, owner))
            self._wait += time.monotonic() - asked
            blank = not claimed.box.touched
            self._box = self._in_step(claimed.box)
            try:
                return await self._slotted()
            except SandboxDied as died:
                if not tool.idempotent:
                    raise ToolInterrupted(
                        f"interrupted: {died}; the outcome of this call is unknown"
                    ) from None
                if not blank:
                    raise
                last = died
                if not tool.fresh:
                    await environments.replace(tool.env, program.owner)
        raise last

    async def _slotted(self) -> Any:
        program, call = self.program, self.call
        slot = program.dispatcher.tool_slot(
            program.id, program.full(self.conversation), call.id, call.kind
        )
        async with slot:
            return await self._attempts()

    async def _attempts(self) -> Any:
        for attempt in range(self.tool.retries + 1):
            try:
                return await self._once()
            except SandboxDied:
                raise
            except Exception:
                if attempt == self.tool.retries:
                    raise
        raise AssertionError("unreachable")

    async def _once(self) -> Any:
        tool, box = self.tool, self._box
        limit = None if tool.timeout is None else tool.timeout + (_GRACE if box else 0.0)
        token = tool_host.set(None)  # a tool that calls a tool calls a function
        scope = asyncio.timeout(limit)
        if self._heard is not None:
            self._heard.again()
        try:
            async with scope:
                return await _watched(tool, lambda: tool.run(self.call.arguments, box, self._says))
        except TimeoutError:
            if not scope.expired():  # the tool's own
                raise
            raise ToolTimeout(_late(tool)) from None
        finally:
            tool_host.reset(token)

    def _says(self, text: str) -> None:
        if self._heard is not None:
            self._heard.add(text, self.tool.limit)


async def _watched(tool: Tool[..., Any], call: Callable[[], Awaitable[Any]]) -> Any:
    if tool.threaded:
        return await contained(call)
    with watch(_blamed.__code__).watching():
        return await in_own_task(_blamed(tool.name, call))


async def _blamed(blame: str, call: Callable[[], Awaitable[Any]]) -> Any:
    """Have a frame by which `BlockingWatch` knows the tool."""
    return await contained(call)


def _late(tool: Tool[..., Any]) -> str:
    words = f"timed out after {tool.timeout:g} s"
    if not tool.threaded:
        return words
    log.warning("tool %s %s: its thread cannot be stopped and goes on", tool.name, words)
    until = " until it yields" if tool.streams else ""
    return f"{words}; it cannot be stopped and goes on in the background{until}"


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, DrawloomError) else describe_error(error)


def _error_text(error: BaseException) -> str:
    return cut_chars(valid_text(f"error: {_words(error)}"), MAX_CHARS)


def _cut(text: str, tool: Tool[..., Any]) -> str:
    return cut_chars(text, MAX_CHARS if tool.limit is None else min(tool.limit, MAX_CHARS))


__all__ = ["StepSandbox", "ToolStep", "run_call", "run_direct"]
