"""Programs with tools, run by the whole runtime: scheduler, store, tool processes and engine.

Lengths are those of a coding workload (`sim` knows it as ``swe``), scaled by a stated factor; what
the model says means nothing, so each turn is followed by the tool call that the workload has
there: a process of its own that sleeps as long as the workload's tool took and prints as much.
"""

import asyncio
import random
import statistics
import sys
import time
from dataclasses import dataclass

from drawloom import Chat, Runtime, agent, tool
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.hosting.thread_engine import ThreadEngine
from drawloom.runtime.bench.gpu.step_timeline import Steps
from drawloom.runtime.dispatch.backends import tiny_model
from drawloom.runtime.sim.synthetic import generate
from drawloom.runtime.sim.workload import Job
from drawloom.runtime.store.store import StepRow
from drawloom.tools.chat_template import ChatTemplate
from drawloom.tools.tool_call import ToolCall

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Load:
    """Describe programs that run at once.

    Args are fields: programs, their calls at most, and the scale of tokens and seconds.
    """

    programs: int
    calls: int = 12
    tokens: float = 0.1
    seconds: float = 0.05


@dataclass(frozen=True, slots=True)
class Ran:
    """Hold the figures of one run."""

    seconds: float
    rate: float
    returns: float
    idle: float
    host: float
    steps: int


@tool(timeout=None)
async def work(seconds: float, letters: int) -> str:
    """Run a process that sleeps and prints, as a tool does."""
    script = f"import time; time.sleep({seconds}); print('{_LETTERS[letters % 26]}' * {letters})"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", script, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode().strip()


@agent(tools=[work], system="", max_tokens=4096, temperature=0.0)
async def replayed(first: int, calls: list[list[float]]) -> int:
    """Says as much as it is told to, and calls the tool whatever that was."""
    chat = Chat().user(_text(first))
    for number, (output, seconds, letters) in enumerate(calls):
        await chat.turn(max_tokens=int(output), ignore_eos=True)
        arguments = {"seconds": seconds, "letters": int(letters)}
        await chat.run([ToolCall(f"call-{number}", "work", arguments)])
    return len(calls)


def _text(length: int) -> str:
    return "".join(random.Random(length).choices(_LETTERS, k=length))


def _plan(job: Job, load: Load) -> tuple[int, list[list[float]]]:
    """Return what a job sends: letters of its first prompt, and figures of each call.

    The figures are output tokens, tool seconds and letters of the result.
    """
    calls = job.calls[: load.calls]
    found = []
    for at, call in enumerate(calls):
        more = calls[at + 1].prompt - call.context if at + 1 < len(calls) else 0
        found.append(
            [
                float(max(1, round(call.output * load.tokens))),
                round(call.gap * load.seconds, 4),
                float(max(1, round(max(0, more) * load.tokens))),
            ]
        )
    return max(1, round(calls[0].prompt * load.tokens)), found


def _waits(rows: list[StepRow]) -> list[float]:
    """Seconds from each tool's end to the first token behind it."""
    tools = [row.ended for row in rows if row.kind == "tool" and row.ended is not None]
    firsts = [
        row.detail["times"]["first"] for row in rows if row.kind == "llm" and row.detail["times"]
    ]
    return [first - ended for ended, first in zip(sorted(tools), sorted(firsts)[1:], strict=False)]


async def _run(core: EngineCore, load: Load) -> Ran:
    jobs = generate("swe", load.programs, seed=0)
    plans = [_plan(job, load) for job in jobs]
    engine = ThreadEngine(core)
    template = ChatTemplate.load(tiny_model())
    before = core.stats()
    async with Runtime(engine, sandbox="none", template=template) as runtime:
        began = time.monotonic()
        with Steps(core) as noted:
            runs = [await runtime.start(replayed, *plan) for plan in plans]
            await asyncio.gather(*(one.result() for one in runs))
        took, after = time.monotonic() - began, core.stats()
        waits = [w for one in runs for w in _waits(await runtime.store.steps(one.id))]
    steps = after.batch.steps - before.batch.steps
    return Ran(
        took,
        (after.batch.generated_tokens - before.batch.generated_tokens) / took,
        statistics.median(waits or [0.0]),
        noted.idle,
        (after.overhead_seconds - before.overhead_seconds) / max(1, steps),
        steps,
    )


def loop(core: EngineCore, load: Load) -> Ran:
    """Run it. The engine's thread is closed at the end; its core is not to be used after."""
    return asyncio.run(_run(core, load))


__all__ = ["Load", "Ran", "loop"]
