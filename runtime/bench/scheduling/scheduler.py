"""Benchmark of the scheduler: its time and memory for an engine step.

10,000 programs are live, 256 calls run; each decodes 150 tokens on average, so about 1.7 calls end
in an engine step, as many begin, and a fortieth of the programs end and are replaced. After each
step the core hears what each call has said. Everything that it does for these is counted as that
step's, and building what it is told as well; in processor time, as the core waits for nothing.
Further rows have one program of 2,000 branches, a different agent for each program, and 2,000 tools
that a client made up.
"""

import random
import statistics
import time
import tracemalloc
from dataclasses import dataclass

from rich.table import Table

from drawloom.runtime.console import output
from drawloom.runtime.scheduler import Scheduler
from drawloom.runtime.scheduler.actions import ScheduleTick, StartStep
from drawloom.runtime.scheduler.events import (
    ConversationEnded,
    Decoded,
    EngineUp,
    Event,
    Forked,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
    Tick,
    ToolStarted,
)
from drawloom.runtime.scheduler.policies import make_policy

_RUNNING, _TOKENS, _CALLS = 256, 150, 40
_PEAK, _USUAL = 1_000, 590
_HELD = 5_000  # programs whose memory is measured
_STEP_MS, _P99_MS, _BYTES = 1.0, 5.0, 2_000  # the bars


@dataclass(frozen=True, slots=True)
class Shape:
    """Describe a load of live programs.

    Args:
        live: programs at a time.
        branches: branches of each.
        agents: different agents.
        tools: different tools.
    """

    live: int = 10_000
    branches: int = 1
    agents: int = 8
    tools: int = 4


SHAPES = {
    "programs": Shape(),
    "2,000 branches in one": Shape(live=1, branches=2_000),
    "10,000 agents": Shape(agents=10_000),
    "2,000 tools": Shape(tools=2_000),
}


class _Load:
    """Keep programs busy: feed events to a core as an engine would."""

    def __init__(self, policy: str, shape: Shape, running: int) -> None:
        self.core = Scheduler(make_policy(policy))
        self.rng, self.now, self.made = random.Random(0), 0.0, 0
        self.shape, self.running = shape, running
        self.started: list[tuple[str, str]] = []
        self.lines: dict[str, str] = {}
        self.turns: dict[str, int] = {}
        self.contexts: dict[str, int] = {}
        self.wakes: list[float] = []
        self.spent = 0.0
        self.send(EngineUp("e", running * _USUAL))  # so that so many fit
        while len(self.core.state.programs) < shape.live:
            self.submit()

    def send(self, event: Event) -> None:
        began = time.thread_time()
        actions = self.core.handle(event, self.now)
        self.spent += time.thread_time() - began
        for action in actions:
            if isinstance(action, StartStep):
                self.started.append((action.program, action.step))
            elif isinstance(action, ScheduleTick):
                self.wakes.append(action.at)

    def submit(self) -> None:
        self.made += 1
        name, agent = f"p{self.made}", f"agent-{self.made % self.shape.agents}"
        self.send(ProgramSubmitted(name, agent, f"t{self.made % 10}", expect_tokens=_PEAK))
        self.ready(name, name, "")
        if self.shape.branches > 1:
            self._finish(name, name, self.started.pop()[1], "plan")
            for _ in range(self.shape.branches):
                self.fork(name)

    def fork(self, name: str) -> None:
        self.made += 1
        line = f"{name}/{self.made}"
        self.send(Forked(name, name, line, "e"))
        self.ready(name, line, "")

    def ready(self, name: str, line: str, tool: str) -> None:
        turn = self.turns[line] = self.turns.get(line, -1) + 1
        step, size = f"{line}#{turn}", min(_PEAK - 20, 180 + 20 * turn)
        self.lines[step], self.contexts[step] = line, size
        self.send(
            StepReady(name, line, step, f"llm/{tool}", engine="e", prompt=size, output=_TOKENS)
        )

    def _finish(self, name: str, line: str, step: str, tool: str) -> None:
        size = min(_PEAK - 20, 200 + 20 * self.turns[line])
        service, calls = self.rng.expovariate(0.3), (tool,) if tool else ()
        del self.contexts[step], self.lines[step]
        self.send(
            StepFinished(
                name,
                line,
                step,
                "llm",
                engine="e",
                context=size,
                calls=calls,
                computed=20,
                seconds=0.01,
                service=service,
            )
        )

    def finish(self, name: str, step: str) -> None:
        """End a call; its conversation goes on after a tool, or is replaced by a new one."""
        line = self.lines[step]
        if self.rng.random() < 1 / _CALLS:
            self._finish(name, line, step, "")
            del self.turns[line]
            if line == name:
                self.send(ProgramEnded(name))
                self.submit()
            else:
                self.send(ConversationEnded(name, line))
                self.fork(name)
            return
        tool = f"tool{self.rng.randrange(self.shape.tools)}"
        self._finish(name, line, step, tool)
        self.send(ToolStarted(name, line, tool, None))
        self.now += 1e-3
        self.ready(name, line, tool)

    def step(self) -> float:
        """Return the seconds of the core for one step of the engine."""
        self.spent = 0.0
        self.now += 0.02
        while self.wakes and min(self.wakes) <= self.now:
            self.wakes.remove(min(self.wakes))
            self.send(Tick())
        count = min(len(self.started), self.running)
        running = self.started[:count]
        for _, step in running:
            self.contexts[step] += 1
        began = time.thread_time()
        told = Decoded("e", tuple([(name, step, self.contexts[step]) for name, step in running]))
        self.spent += time.thread_time() - began
        self.send(told)
        rate = count / _TOKENS
        for _ in range(int(rate) + (self.rng.random() < rate % 1)):
            self.finish(*self.started.pop(self.rng.randrange(count)))
        return self.spent


def measure(
    policy: str, steps: int = 4_000, shape: Shape = SHAPES["programs"], running: int = _RUNNING
) -> dict[str, float]:
    """Return the milliseconds of the core for each engine step."""
    load = _Load(policy, shape, running)
    for _ in range(steps // 4):
        load.step()
    times = sorted(1e3 * load.step() for _ in range(steps))
    return {
        "live": len(load.core.state.programs),
        "conversations": sum(len(p.conversations) for p in load.core.state.programs.values()),
        "running": min(running, len(load.started)),
        "median_ms": statistics.median(times),
        "p99_ms": times[int(0.99 * len(times))],
        "max_ms": times[-1],
    }


def held_bytes(policy: str, programs: int = _HELD) -> float:
    """Return the bytes of scheduler state that one waiting program takes, its names included."""
    load = _Load(policy, Shape(live=0), running=1)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(programs):
            name = f"p{number}"
            load.send(ProgramSubmitted(name, f"agent-{number % 8}", f"t{number % 10}"))
            load.send(
                StepReady(name, name, f"{name}#0", "llm/", engine="e", prompt=180, output=_TOKENS)
            )
        load.started.clear()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / programs


def main(policy: str, json: bool) -> int:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in (one.strip() for one in policy.split(",")):
        found[name] = {row: measure(name, shape=shape) for row, shape in SHAPES.items()}
        found[name]["memory"] = {"bytes_per_held_program": held_bytes(name)}
    if json:
        output.emit(found)
        return 0
    table = Table(
        "policy",
        "load",
        "live",
        "calls that run",
        "median",
        "p99",
        "largest",
        title=f"core, an engine step (bars: {_STEP_MS:g} ms, 99 % within {_P99_MS:g} ms)",
    )
    for name, rows in found.items():
        for load, row in rows.items():
            if load == "memory":
                held = row["bytes_per_held_program"]
                table.add_row(name, f"held: {held:,.0f} B a program (bar: {_BYTES:,} B)")
                continue
            times = (f"{row[key]:.3f} ms" for key in ("median_ms", "p99_ms", "max_ms"))
            table.add_row(name, load, f"{row['live']:,.0f}", f"{row['running']:,.0f}", *times)
    output.console().print(table)
    return 0


__all__ = ["SHAPES", "Shape", "held_bytes", "main", "measure"]
