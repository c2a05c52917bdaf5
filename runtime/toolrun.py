"""Running a tool as a step: intent first, then the environment, the call, the result."""

import asyncio
import contextlib
import hashlib
import time
import typing
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from drawloom.environments import ExecResult, ServiceState
from drawloom.errors import DrawloomError, SandboxDied, ToolError, ToolInterrupted, ToolTimeout
from drawloom.events import ToolFinished, ToolStarted
from drawloom.runtime.program import Program
from drawloom.runtime.store import StepRow
from drawloom.sandbox.base import LiveSandbox
from drawloom.sandbox.verbs import Verbs
from drawloom.tools.calls import ToolCall, ToolResult
from drawloom.tools.tool import Tool, render, tool_host

_GRACE = 2.0  # an exec's own timeout comes first, so that the tool sees what was printed
_CUT = "\n… {} characters cut …\n"


class StepSandbox(Verbs):
    """An environment as one step sees it: its execs are numbered, so that a resumed step asks for
    their results instead of running them twice. Implements `Sandbox`."""

    def __init__(self, box: LiveSandbox, step: str, timeout: float | None) -> None:
        self._box, self._timeout = box, timeout
        self._step = hashlib.blake2b(step.encode(), digest_size=12).hexdigest()
        self.keys: list[str] = []

    @property
    def id(self) -> str:
        return self._box.id

    async def exec(
        self,
        *argv: str,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        key = f"{self._step}-{len(self.keys)}"
        self.keys.append(key)
        limit = timeout if timeout is not None else self._timeout
        try:
            return await self._box.exec(
                *argv, stdin=stdin, timeout=limit, on_output=on_output, key=key
            )
        except asyncio.CancelledError:
            await asyncio.shield(self._box.cancel(key))
            raise

    async def launch(self, key: str, *argv: str) -> None:
        await self._box.launch(key, *argv)

    async def peek(self, key: str) -> ServiceState | None:
        return await self._box.peek(key)

    async def cancel(self, key: str) -> None:
        await self._box.cancel(key)

    async def ack(self, key: str) -> None:
        await self._box.ack(key)

    async def write(self, path: str, data: bytes) -> None:
        await self._box.write(path, data)

    async def read(self, path: str, *, limit: int = 16 << 20) -> bytes:
        return await self._box.read(path, limit=limit)

    async def append(self, path: str, data: bytes, *, whole: bool = False) -> None:
        await self._box.append(path, data, whole=whole)

    async def piece(self, path: str, offset: int) -> tuple[bytes, int]:
        return await self._box.piece(path, offset)

    async def forget(self) -> None:
        """The results are in the store; the helper need not keep them."""
        if self._box.alive:
            for key in self.keys:
                await self._box.ack(key)


async def run_call(program: Program, lineage: str, call: ToolCall) -> ToolResult:
    """Run what a model asked for. Whatever goes wrong is told to the model, never raised."""
    row = program.recorded(call.id, "tool", call.name)
    if row is not None and row.status == "done":
        program.account.usage.tool_calls += 1
        detail = row.detail
        return ToolResult(call.id, call.name, detail["content"], detail["ok"], detail["seconds"])
    tool = program.tool(call.name)
    if call.error is not None or tool is None:
        known = ", ".join(t.name for t in program.agent.tools) or "none"
        reason = call.error or f"there is no tool {call.name!r}; there are: {known}"
        return ToolResult(call.id, call.name, f"error: {reason}", ok=False)
    try:
        value, seconds = await _step(program, lineage, tool, call, row)
    except _Failed as failure:
        return ToolResult(call.id, call.name, failure.content, False, failure.seconds)
    return ToolResult(call.id, call.name, _cut(render(value), tool.limit), True, seconds)


async def run_direct(program: Program, tool: Tool[..., Any], call: ToolCall) -> Any:
    """Run a tool that agent code called. Its value is returned, its failure raised."""
    row = program.recorded(call.id, "tool", call.name)
    if row is not None and row.status == "done":
        program.account.usage.tool_calls += 1
        if not row.detail["ok"]:
            raise ToolError(row.detail["content"])
        kind = typing.get_type_hints(tool.fn).get("return", Any)
        return TypeAdapter(kind).validate_python(row.detail["value"])
    program.account.before_tools(1)
    try:
        return (await _step(program, "", tool, call, row))[0]
    except _Failed as failure:
        raise failure.error from None


class _Failed(Exception):
    """A tool failed for good; it is recorded."""

    def __init__(self, error: Exception, seconds: float) -> None:
        self.error = error if isinstance(error, DrawloomError) else ToolError(_words(error))
        self.content = f"error: {_words(error)}"
        self.seconds = seconds


async def _step(
    program: Program, lineage: str, tool: Tool[..., Any], call: ToolCall, row: StepRow | None
) -> tuple[Any, float]:
    async with (
        contextlib.AsyncExitStack() as held
    ):  # its environment stays until its result is in the store
        return await _recorded(program, lineage, tool, call, row, held)


async def _recorded(
    program: Program,
    lineage: str,
    tool: Tool[..., Any],
    call: ToolCall,
    row: StepRow | None,
    held: contextlib.AsyncExitStack,
) -> tuple[Any, float]:
    live, usage = program.live, program.account.usage
    usage.tool_calls += 1
    intent = {"arguments": to_jsonable_python(call.arguments, fallback=str), "lineage": lineage}
    if row is None:
        await live.store.intend(program.id, call.id, tool.name, intent)
    key = tool.env.key if tool.env is not None else None
    live.emit(ToolStarted(program.id, program.full(lineage), tool.name, key))
    live.note(program.id, "tool.started", tool=tool.name, step=call.id)
    began = time.monotonic()
    box: StepSandbox | None = None
    value, error, wait = None, None, 0.0
    try:
        _refuse_repetition(program, tool, row)
        if tool.env is not None:
            use = live.environments.use(tool.env, program.id)
            claimed = await held.enter_async_context(use)
            wait = time.monotonic() - began
            box = StepSandbox(claimed.box, f"{program.id}:{call.id}", tool.timeout)
            full = program.full(lineage)
            async with live.tool_slot(program.id, full, call.id, call.kind):
                value = await _attempts(tool, call, box)
        else:
            value = await _attempts(tool, call, None)
    except Exception as failure:
        error = failure
    seconds = time.monotonic() - began
    content = f"error: {_words(error)}" if error else _cut(render(value), tool.limit)
    result = {"content": content, "ok": error is None, "seconds": seconds, "env_wait": wait}
    plain = to_jsonable_python(value, fallback=str)
    await live.store.end_tool(program.id, call.id, intent | result | {"value": plain})
    if box is not None:
        await _forget(box)
    live.emit(ToolFinished(program.id, program.full(lineage), tool.name, seconds))
    live.note(program.id, "tool.finished", tool=tool.name, step=call.id, ok=error is None)
    if error is not None:
        raise _Failed(error, seconds)
    return value, seconds


def _refuse_repetition(program: Program, tool: Tool[..., Any], row: StepRow | None) -> None:
    """A step that was in flight when its process died runs again only where that is known to be
    harmless: the tool says so, or its environment was adopted and remembers what it ran."""
    if row is None or tool.idempotent or (tool.env is not None and program.adopted):
        return
    raise ToolInterrupted("interrupted: the process died during this call, its outcome is unknown")


async def _attempts(tool: Tool[..., Any], call: ToolCall, box: StepSandbox | None) -> Any:
    for attempt in range(tool.retries + 1):
        try:
            return await _once(tool, call, box)
        except SandboxDied:
            raise
        except Exception:
            if attempt == tool.retries:
                raise
    raise AssertionError("unreachable")


async def _once(tool: Tool[..., Any], call: ToolCall, box: StepSandbox | None) -> Any:
    limit = None if tool.timeout is None else tool.timeout + (_GRACE if box else 0.0)
    token = tool_host.set(None)  # a tool that calls a tool calls a function
    scope = asyncio.timeout(limit)
    try:
        async with scope:
            return await tool.run(call.arguments, box)
    except TimeoutError:
        if not scope.expired():  # the tool's own
            raise
        raise ToolTimeout(f"timed out after {tool.timeout:g} s") from None
    finally:
        tool_host.reset(token)


async def _forget(box: StepSandbox) -> None:
    with contextlib.suppress(SandboxDied):  # the next call of the program will say so
        await box.forget()


def _words(error: BaseException | None) -> str:
    if isinstance(error, DrawloomError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    half = limit // 2
    return text[:half] + _CUT.format(len(text) - 2 * half) + text[len(text) - half :]


__all__ = ["StepSandbox", "run_call", "run_direct"]
