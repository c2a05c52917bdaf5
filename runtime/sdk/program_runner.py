"""Runner of programs: admission, body, end."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import copy_context
from typing import Any, TypeVar

from drawloom.errors import BudgetExceeded
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.execution.program import Program, current_program
from drawloom.runtime.execution.tool_step import DirectCalls
from drawloom.runtime.scheduler.events import ProgramEnded, ProgramSubmitted
from drawloom.runtime.sdk.recovery import environments_of, lasting
from drawloom.runtime.sdk.run import Run
from drawloom.runtime.store.result_json import result_json
from drawloom.tools.tool import tool_host

R = TypeVar("R")


class ProgramRunner:
    """Run programs on a dispatcher, each in a task of its own.

    Attributes:
        runs: the programs that run, by id.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.runs: dict[str, Run[Any]] = {}

    def launch(self, program: Program, body: Callable[[], Awaitable[R]]) -> Run[R]:
        """Start the task of a program.

        Args:
            program: its record is in the store.
            body: calls the agent with its arguments.
        """
        self._declare(program)
        context = copy_context()
        context.run(current_program.set, program)
        context.run(tool_host.set, DirectCalls(program))
        work = self._run(program, body)
        task = asyncio.get_running_loop().create_task(work, context=context)
        task.add_done_callback(_retrieve)
        run = self.runs[program.id] = Run(program, task, self._dispatcher.bus)
        return run

    async def cancel_all(self) -> None:
        """Cancel all programs and wait until what they held is free."""
        for run in list(self.runs.values()):
            await run.cancel()

    def _declare(self, program: Program) -> None:
        """Declare the agent's environments, and how long its tools are expected to take."""
        dispatcher, agent = self._dispatcher, program.agent
        for env in environments_of(agent):
            dispatcher.environments.declare(env)
        shared = {env.key for env in lasting(agent)}
        dispatcher.environments.declare_per_call(
            program.id, {env.key for env in environments_of(agent)} - shared
        )
        learned = dispatcher.scheduler.state.graph(agent.name)
        for tool in agent.tools:
            if tool.expect is not None:
                learned.durations.declare(tool.name, tool.expect)

    async def _run(self, program: Program, body: Callable[[], Awaitable[R]]) -> R:
        status, result, words = "failed", None, None
        dispatcher, agent = self._dispatcher, program.agent
        try:
            await self._admission(program)
            began = program.began = program.began or time.time()
            again = {"error": None, "ended": None}
            await dispatcher.store.set_program(program.id, status="running", started=began, **again)
            dispatcher.note(program.id, "program.started")
            async with _deadline(agent.budget.seconds):
                value = await body()
            if program.diverged is not None:
                raise program.diverged
            result, status = result_json(value), "done"
            return value
        except asyncio.CancelledError:
            status, words = "cancelled", "cancelled"
            raise
        except Exception as error:
            if (diverged := program.diverged) is None:
                words = f"{type(error).__name__}: {error}"
                raise
            status, words = "interrupted", f"{type(diverged).__name__}: {diverged}"
            dispatcher.environments.leave_to_resume(program.id)
            raise diverged from None
        finally:
            self.runs.pop(program.id, None)
            await asyncio.shield(self._end(program, status, result, words))

    async def _admission(self, program: Program) -> None:
        """Submit a program and wait until the scheduler admits it."""
        dispatcher, agent = self._dispatcher, program.agent
        admitted = dispatcher.expect_admission(program.id)
        deadline = time.monotonic() + agent.deadline if agent.deadline is not None else None
        envs = tuple(e.key for e in environments_of(agent)) if dispatcher.pool is not None else ()
        shared = {env.key for env in lasting(agent)}
        dispatcher.note(program.id, "program.submitted")
        dispatcher.emit(
            ProgramSubmitted(
                program.id,
                agent.name,
                agent.tenant,
                agent.priority,
                deadline=deadline,
                envs=envs,
                expect_tokens=agent.expect_tokens,
                fresh=tuple(key for key in envs if key not in shared),
            )
        )
        async with _deadline(agent.budget.seconds):
            await admitted

    async def _end(self, program: Program, status: str, result: Any, words: str | None) -> None:
        """Record the end of a program, then release everything that it held.

        In this order a crash in between leaves an environment to sweep, never a program that waits
        for one that is gone.
        """
        dispatcher = self._dispatcher
        await program.stop_tasks()
        values = {"status": status, "result": result, "error": words, "ended": time.time()}
        try:
            await dispatcher.store.set_program(program.id, **values)
        finally:
            dispatcher.emit(ProgramEnded(program.id))
            await dispatcher.settle()
            dispatcher.note(program.id, "program.ended", status=status, error=words)


@contextlib.asynccontextmanager
async def _deadline(seconds: float | None) -> AsyncIterator[None]:
    """Raise `BudgetExceeded` in a block that takes longer."""
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            yield
    except TimeoutError:
        if not scope.expired():  # the agent's own
            raise
        raise BudgetExceeded(f"the budget of {seconds:g} seconds is spent") from None


def _retrieve(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()  # it is in the store; nobody may be waiting for it


__all__ = ["ProgramRunner"]
