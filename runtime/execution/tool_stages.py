"""Stages of a tool step: each wraps the next, the tool's own function is innermost."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from drawloom.errors import SandboxDied, SandboxError, ToolInterrupted, ToolTimeout
from drawloom.runtime.execution.blocking import watch
from drawloom.runtime.execution.contain import contained, in_own_task
from drawloom.runtime.execution.tool_run import ToolRun
from drawloom.tools.tool import Tool, tool_host

Next = Callable[[], Awaitable[Any]]

_MAX_ENVIRONMENTS = 3  # a call that may be repeated survives the loss of two environments
_EXEC_GRACE = 2.0  # seconds: an exec's own timeout comes first, so that the tool sees its output
log = logging.getLogger("drawloom.runtime")


async def repetition_refused(run: ToolRun, call: Next) -> Any:
    """Run a call that was in flight when its process died only where that is harmless.

    It is where the tool is idempotent, or where its environment was adopted and the call had
    not gone beyond waiting for its first command.

    Raises:
        ToolInterrupted: its outcome is unknown.
    """
    tool, row = run.tool, run.row
    if row is None or tool.idempotent:
        return await call()
    in_place = tool.env is not None and not tool.fresh and run.program.adopted
    if in_place and not row.detail.get("acted"):
        return await call()
    if in_place:
        with contextlib.suppress(SandboxError):  # then none of its commands runs on
            await run.end_commands()
    raise ToolInterrupted("interrupted: the process died during this call, its outcome is unknown")


async def environment_claimed(run: ToolRun, call: Next) -> Any:
    """Run the call in an environment, and in another one if that dies and nothing is lost.

    Nothing is lost if the call may be repeated and no earlier call left files there.

    Raises:
        ToolInterrupted: the environment died, and the call must not be repeated.
        SandboxDied: the environment died with files of earlier calls.
    """
    tool, program = run.tool, run.program
    if tool.env is None:
        return await call()
    environments = program.dispatcher.environments
    for _ in range(_MAX_ENVIRONMENTS):
        asked = time.monotonic()
        claim = (
            environments.claim_per_call(tool.env, program.id)
            if tool.fresh
            else environments.use(tool.env, program.owner)
        )
        environment = await run.held.enter_async_context(claim)
        run.env_wait += time.monotonic() - asked
        blank = not environment.touched
        run.sandbox = run.sandbox_of(environment)
        try:
            return await call()
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


async def slot_taken(run: ToolRun, call: Next) -> Any:
    """Wait for a tool slot where slots are limited and the tool runs in an environment."""
    if run.tool.env is None:
        return await call()
    program = run.program
    slot = program.dispatcher.tool_slot(
        program.id, program.full(run.conversation), run.call.id, run.call.kind
    )
    async with slot:
        return await call()


async def retried(run: ToolRun, call: Next) -> Any:
    """Repeat a call that fails, as often as the tool declares; never in a dead environment."""
    for attempt in range(run.tool.retries + 1):
        try:
            return await call()
        except SandboxDied:
            raise
        except Exception:
            if attempt == run.tool.retries:
                raise
    raise AssertionError("unreachable")


async def timed_out(run: ToolRun, call: Next) -> Any:
    """End a call after the tool's timeout.

    Raises:
        ToolTimeout: it took longer. A thread cannot be stopped and goes on.
    """
    tool = run.tool
    limit = None if tool.timeout is None else tool.timeout + (_EXEC_GRACE if run.sandbox else 0.0)
    scope = asyncio.timeout(limit)
    run.restart_output()
    try:
        async with scope:
            return await call()
    except TimeoutError:
        if not scope.expired():  # the tool's own
            raise
        raise ToolTimeout(_late(tool)) from None


async def function_called(run: ToolRun, _: Next) -> Any:
    """Call the tool's function, watched for blocking the event loop."""
    tool = run.tool

    def call() -> Awaitable[Any]:
        return tool.run(run.call.arguments, run.sandbox, run.on_output)

    token = tool_host.set(None)  # a tool that calls a tool calls a function
    try:
        if tool.threaded:
            return await contained(call)
        with watch(_blamed.__code__).watching():
            return await in_own_task(_blamed(tool.name, call))
    finally:
        tool_host.reset(token)


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


# Outermost first. Before them a step is replayed from its record, or its intent is recorded; after
# them its outcome is recorded (`tool_step.py`).
STAGES = (
    repetition_refused,
    environment_claimed,
    slot_taken,
    retried,
    timed_out,
    function_called,
)


async def run_stages(run: ToolRun, at: int = 0) -> Any:
    """Run a tool step's stages from the one at `at` on; return the tool's value."""
    return await STAGES[at](run, lambda: run_stages(run, at + 1))


__all__ = ["STAGES", "run_stages"]
