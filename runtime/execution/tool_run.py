"""Tool call that runs: its environment, output and intent, as the stages share them."""

import contextlib
from typing import Any

from drawloom.runtime.execution.env_progress import Progress
from drawloom.runtime.execution.program import Program
from drawloom.runtime.execution.speculative_prefill import StableOutput
from drawloom.runtime.execution.step_sandbox import StepSandbox
from drawloom.runtime.store.result_json import describe
from drawloom.runtime.store.store import StepRow
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.tools.tool import Tool
from drawloom.tools.tool_call import ToolCall


class ToolRun:
    """Hold the state of one tool call that runs.

    Args:
        program: the program that it is a step of.
        conversation: name of the conversation that asked; empty for agent code.
        tool: the tool.
        call: its arguments, and the key of the step.
        row: the record that a killed predecessor left.
        output: told of the tool's output as it comes.
    """

    def __init__(
        self,
        program: Program,
        conversation: str,
        tool: Tool[..., Any],
        call: ToolCall,
        row: StepRow | None,
        output: StableOutput | None = None,
    ) -> None:
        self.program, self.conversation, self.tool, self.call = program, conversation, tool, call
        self.row, self._output = row, output
        self.intent = {"arguments": describe(call.arguments), "conversation": conversation}
        self._progress = Progress(self._mark_acted if self._may_be_entered_again() else None)
        self.env_wait = 0.0
        self.sandbox: StepSandbox | None = None
        self.held = contextlib.AsyncExitStack()

    def sandbox_of(self, environment: LiveSandbox) -> StepSandbox:
        """Return an environment as this call sees it."""
        step = f"{self.program.id}:{self.call.id}"
        return StepSandbox(environment, step, self.tool.timeout, self._progress)

    async def end_commands(self) -> None:
        """End the commands of this call that a killed process left running."""
        env, program = self.tool.env, self.program
        assert env is not None
        async with program.dispatcher.environments.use(env, program.owner) as environment:
            sandbox = self.sandbox_of(environment)
            for name, _ in env.sidecars:
                await sandbox.sidecar(name).end_commands()
            await sandbox.end_commands()

    def restart_output(self) -> None:
        """Drop the output so far: the call is tried once more."""
        if self._output is not None:
            self._output.restart()

    def on_output(self, text: str) -> None:
        """Take output that the tool yields."""
        if self._output is not None:
            self._output.add(text, self.tool.limit)

    def _may_be_entered_again(self) -> bool:
        """Return whether a resumed program might run this call's code again, unless marked."""
        tool, pool = self.tool, self.program.dispatcher.pool
        if tool.env is None or tool.fresh or tool.idempotent or pool is None:
            return False
        return pool.provider.keeps_running

    async def _mark_acted(self) -> None:
        detail = self.intent | {"acted": True}
        await self.program.dispatcher.store.note_intent(self.program.id, self.call.id, detail)


__all__ = ["ToolRun"]
