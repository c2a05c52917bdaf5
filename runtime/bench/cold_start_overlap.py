"""Share of the environments' start-up time that programs do not notice.

Measured with one environment for each program, with one for each call, and beside a pool that is
always full.
"""

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from drawloom.engine.config import EngineConfig
from drawloom.environments import Env, Sandbox
from drawloom.errors import ToolError
from drawloom.runtime.bench.table import Row
from drawloom.runtime.demo import tasks
from drawloom.runtime.demo.run import DemoOptions, make_tasks
from drawloom.runtime.execution.agent import Agent
from drawloom.runtime.execution.budget import Budget
from drawloom.runtime.sdk.chat import Chat
from drawloom.runtime.sdk.options import SandboxOptions
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.tools.tool import Tool, tool

_PROGRAMS, _POOL = 32, 8


@dataclass(frozen=True, slots=True)
class Waits:
    """Hold what one run waited for.

    Args:
        stall: seconds that programs waited for environments.
        cold: seconds that making environments took.
        idle: seconds that warm environments were unused.
        claims: environments that were claimed.
        right: answers that were right.
        seconds: length of the run.
    """

    stall: float
    cold: float
    idle: float
    claims: int
    right: int
    seconds: float

    @property
    def hidden(self) -> float:
        """Return the percentage of the making that no program waited for."""
        return 100 * (1 - self.stall / self.cold) if self.cold else 0.0


async def measure(docker: str | None, *, fresh: bool, full: bool) -> Waits:
    """Run the demo's programs once.

    Args:
        docker: address of the Docker engine; None finds it.
        fresh: one environment for each tool call instead of one for each program.
        full: keep the whole pool warm from beginning to end.
    """
    options = DemoOptions(programs=_PROGRAMS)
    several = make_tasks(options.programs, options.questions, options.seed)
    if fresh:  # what a command leaves is gone with its environment
        several = [[t for t in own if t.family != "append"] for own in several]
    env = replace(tasks.BOX, warm=_POOL if full else 0)
    runtime = Runtime(
        engine=EngineConfig(device="cpu", kv_tokens=options.kv_tokens),
        sandbox=SandboxOptions(provider="docker", docker=docker, warm=_POOL),
    )
    clock = asyncio.get_running_loop().time
    async with runtime:
        began = clock()
        runs = [await runtime.start(_agent(env, own, fresh=fresh)) for own in several]
        said = await asyncio.gather(*(run.result() for run in runs))
        seconds = clock() - began
        dispatcher = runtime.dispatcher
        await dispatcher.settle()
        assert dispatcher.pool is not None
        counters = dispatcher.pool.counters
        right = sum(
            t.is_solved_by(a)
            for o, s in zip(several, said, strict=True)
            for t, a in zip(o, s, strict=True)
        )
        return Waits(
            dispatcher.environments.stall,
            counters.cold_seconds,
            dispatcher.pool.idle_seconds,
            counters.claims,
            right,
            seconds,
        )


def _agent(env: Env, several: Sequence[tasks.Task], *, fresh: bool) -> Agent[[], list[str]]:
    files = {name: text for task in several for name, text in task.files.items()}

    async def answers() -> list[str]:
        chat, said = Chat(), []
        for task in several:
            chat.user(task.question)
            while (turn := await chat.turn()).calls:
                await chat.run(turn.calls)
            said.append(turn.text)
        return said

    return Agent(
        answers,
        system=tasks.SYSTEM,
        tools=[_shell(env, files, fresh=fresh), tasks.add],
        budget=Budget(llm_calls=40, tool_calls=80),
        max_tokens=64,
    )


def _shell(env: Env, files: dict[str, str], *, fresh: bool) -> Tool[..., Any]:
    @tool(name="shell", env=env, expect=0.05, timeout=20, fresh=fresh)
    async def shell(box: Sandbox, command: str) -> str:
        """Run a shell command."""
        if fresh or (await box.exec("test", "-e", ".laid")).code:
            for name, text in files.items():
                await box.write(name, text.encode())
            await box.write(".laid", b"")
        result = await box.sh(command)
        if result.timed_out or result.code:
            raise ToolError(f"exit {result.code}: {result.text.strip()}")
        return result.text.removesuffix("\n")

    return shell


async def rows(docker: str | None, rounds: int) -> list[Row]:
    """Measure ours and a full pool in turn; return rows of medians over the rounds."""
    found = []
    for fresh in (False, True):
        ours, full = [], []
        for _ in range(rounds):
            ours.append(await measure(docker, fresh=fresh, full=False))
            full.append(await measure(docker, fresh=fresh, full=True))
        each = "each call" if fresh else "each program"
        hidden, idle, other = (
            statistics.median(values)
            for values in ([w.hidden for w in ours], [w.idle for w in ours], [w.idle for w in full])
        )
        claims = statistics.median(w.claims for w in ours)
        found += [
            Row(f"wait hidden, one for {each}", "%", hidden, 90, "90 %", 1),
            Row(
                f"  beside a full pool ({claims:.0f} claims)",
                "%",
                hidden,
                statistics.median(w.hidden for w in full),
                "pool kept full",
            ),
            Row("  idle, seconds of all that were ready", "s", idle, other, "pool kept full", -1),
            Row(
                "  run",
                "s",
                statistics.median(w.seconds for w in ours),
                statistics.median(w.seconds for w in full),
                "pool kept full",
            ),
        ]
    return found


__all__ = ["Waits", "measure", "rows"]
