"""Tool calls as steps of a program: replayed, or recorded as an intent, run, recorded."""

import contextlib
import time
from collections.abc import Awaitable
from typing import Any

from drawloom.errors import DrawloomError, SandboxDied, ToolError
from drawloom.runtime.execution.program import Program
from drawloom.runtime.execution.replay import check_arguments, record_value, replay_direct, settled
from drawloom.runtime.execution.speculative_prefill import StableOutput
from drawloom.runtime.execution.tool_run import ToolRun
from drawloom.runtime.execution.tool_stages import run_stages
from drawloom.runtime.scheduler.events import ToolStarted
from drawloom.runtime.store.error_json import record_error, restore_error
from drawloom.runtime.store.result_json import decode, describe, encode
from drawloom.runtime.store.store import RowExists, StepRow
from drawloom.tools.results import (
    MAX_CHARS,
    cut_chars,
    describe_error,
    render,
    valid_text,
)
from drawloom.tools.tool import Tool
from drawloom.tools.tool_call import ToolCall, ToolResult


async def run_call(
    program: Program, conversation: str, call: ToolCall, output: StableOutput | None = None
) -> ToolResult:
    """Run a tool call of the model; a failure is an answer to the model and never raised.

    Args:
        program: the program whose model asked.
        conversation: name of the conversation within the program.
        call: what the model asked for.
        output: told of what the model will surely be shown, as soon as that is known.
    """
    result = await _result(program, conversation, call, output)
    if output is not None:
        output.end(result.content)
    return result


async def _result(
    program: Program, conversation: str, call: ToolCall, output: StableOutput | None
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
        value, seconds = await _run_recorded(
            ToolRun(program, conversation, tool, call, row, output)
        )
    except RowExists:
        await settled(program, call.id)
        return await _result(program, conversation, call, output)
    except _Failed as failure:
        return ToolResult(call.id, call.name, failure.content, False, failure.seconds)
    return ToolResult(call.id, call.name, _cut(render(value), tool), True, seconds)


async def run_direct(program: Program, tool: Tool[..., Any], call: ToolCall) -> Any:
    """Run a tool that agent code called; return its value, or raise its failure."""
    row = _recorded(program, call)
    if row is not None and row.status == "done":
        program.account.usage.tool_calls += 1
        return replay_direct(program, tool, row)
    await program.may_begin(row)
    program.account.before_tools(1)
    try:
        run = ToolRun(program, "", tool, call, row)
        return (await _run_recorded(run, direct=True))[0]
    except RowExists:
        await settled(program, call.id)
        return await run_direct(program, tool, call)
    except _Failed as failure:
        raise failure.error from None


class DirectCalls:
    """Run the tools that a program's own code calls, as steps of it (a `ToolHost`)."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def call_tool(self, tool: Tool[..., Any], arguments: dict[str, Any]) -> Awaitable[Any]:
        """Run a tool as the program's next step; return its value, or raise its failure."""
        key = f"call{self._program.scope.next()}"
        return run_direct(self._program, tool, ToolCall(key, tool.name, arguments))


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
    """Report a tool that failed for good; the failure is recorded."""

    def __init__(self, error: Exception, seconds: float) -> None:
        self.error = error
        self.content = _error_text(error)
        self.seconds = seconds


async def _run_recorded(run: ToolRun, *, direct: bool = False) -> tuple[Any, float]:
    """Record the intent, run the stages, record the outcome; return value and seconds.

    Args:
        run: the call.
        direct: agent code called: the value is recorded instead of what the model is shown.

    Raises:
        _Failed: the tool failed, and that is recorded.
        RowExists: another process began the step.
    """
    async with run.held:  # its environment stays until its outcome is in the store
        await _record_intent(run)
        began = time.monotonic()
        value, error, outcome = None, None, dict[str, Any]()
        try:
            value = await run_stages(run)
            if direct:
                outcome["value"], value = record_value(run.tool, value)
        except Exception as failure:
            error = failure
            if direct:
                outcome, error = _recordable(failure)
        seconds = time.monotonic() - began
        outcome |= {"ok": error is None, "seconds": seconds, "env_wait": run.env_wait}
        if not direct:
            content = _error_text(error) if error else _cut(render(value), run.tool)
            outcome["content"] = encode(content)
        await _record_outcome(run, outcome)
    if error is not None:
        raise _Failed(error, seconds)
    return value, seconds


async def _record_intent(run: ToolRun) -> None:
    program, tool, call = run.program, run.tool, run.call
    dispatcher = program.dispatcher
    program.account.usage.tool_calls += 1
    if run.row is None:
        try:
            await dispatcher.store.intend(program.id, call.id, tool.name, run.intent)
        except RowExists:  # its replay counts it
            program.account.usage.tool_calls -= 1
            raise
    env = tool.env.key if tool.env else None
    dispatcher.emit(ToolStarted(program.id, program.full(run.conversation), tool.name, env))
    dispatcher.note(program.id, "tool.started", tool=tool.name, step=call.id)


async def _record_outcome(run: ToolRun, outcome: dict[str, Any]) -> None:
    program, tool, call = run.program, run.tool, run.call
    dispatcher = program.dispatcher
    await dispatcher.store.end_tool(program.id, call.id, run.intent | outcome)
    if run.sandbox is not None:
        with contextlib.suppress(SandboxDied):  # the next call of the program will say so
            await run.sandbox.forget()
    dispatcher.note(program.id, "tool.finished", tool=tool.name, step=call.id, ok=outcome["ok"])


def _recordable(failure: Exception) -> tuple[dict[str, Any], Exception]:
    """Return the record of a failure, and the error as a resumed program will see it."""
    ours = failure if isinstance(failure, DrawloomError) else ToolError(_words(failure))
    record = record_error(ours)
    error = restore_error(record).with_traceback(failure.__traceback__)
    return {"error": record}, error


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, DrawloomError) else describe_error(error)


def _error_text(error: BaseException) -> str:
    return cut_chars(valid_text(f"error: {_words(error)}"), MAX_CHARS)


def _cut(text: str, tool: Tool[..., Any]) -> str:
    return cut_chars(text, MAX_CHARS if tool.limit is None else min(tool.limit, MAX_CHARS))


__all__ = ["DirectCalls", "run_call", "run_direct"]
