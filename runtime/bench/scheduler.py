"""`drawloom bench scheduler`: what the program core costs beside an engine step.

10,000 programs are live, 256 run; each of their calls decodes 150 tokens on average, so about 1.7
calls end in an engine step, as many begin, and a fortieth of the programs end and are replaced.
After each step the core hears what each call has said. Everything that it does for these is counted
as that step's.
"""

import random
import statistics
import time

from rich.table import Table

from drawloom.actions import StartStep, Wake
from drawloom.events import (
    Decoded,
    EngineUp,
    Event,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
    Tick,
    ToolFinished,
    ToolStarted,
)
from drawloom.runtime.cli import show
from drawloom.runtime.scheduler import Scheduler, make_policy

_LIVE, _RUNNING, _TOKENS, _CALLS = 10_000, 256, 150, 40
_PEAK, _USUAL = 1_000, 590
_TOOLS = ("shell", "read", "edit", "test")


class _Load:
    """Programs that are always busy, as events for a core. `started` have a call at the engine, of
    which the first `running` decode."""

    def __init__(self, policy: str, live: int, running: int) -> None:
        self.core = Scheduler(make_policy(policy))
        self.rng, self.now, self.made = random.Random(0), 0.0, 0
        self.running = running
        self.started: list[str] = []
        self.contexts: dict[str, int] = {}
        self.wakes: list[float] = []
        self.spent = 0.0
        self.send(EngineUp("e", running * _USUAL))  # so that so many fit
        while len(self.core.world.programs) < live:
            self.submit()

    def send(self, event: Event) -> None:
        began = time.perf_counter()
        actions = self.core.handle(event, self.now)
        self.spent += time.perf_counter() - began
        for action in actions:
            if isinstance(action, StartStep):
                self.started.append(action.program)
                program = self.core.world.programs[action.program]
                self.contexts[program.id] = program.tokens
            elif isinstance(action, Wake):
                self.wakes.append(action.at)

    def submit(self) -> None:
        self.made += 1
        name, agent = f"p{self.made}", f"agent-{self.made % 8}"
        self.send(ProgramSubmitted(name, agent, f"t{self.made % 10}", expect_tokens=_PEAK))
        self.send(StepReady(name, name, f"{name}#0", "llm/", "e", 180, _TOKENS))

    def finish(self, name: str) -> None:
        """A program's call ends; it goes on after a tool, or is replaced by another program."""
        program = self.core.world.programs[name]
        tool, step = self.rng.choice(_TOOLS), f"{name}#{program.steps}"
        size = min(_PEAK - 20, 200 + 20 * program.steps)
        last = self.rng.random() < 1 / _CALLS
        calls = () if last else (tool,)
        service = self.rng.expovariate(0.3)
        self.send(StepFinished(name, name, step, "llm", "e", size, calls, 20, 0.01, 0.0, service))
        if last:
            self.send(ProgramEnded(name))
            self.submit()
            return
        self.send(ToolStarted(name, name, tool, None))
        self.now += 1e-3
        self.send(ToolFinished(name, name, tool, 1.0))
        step = f"{name}#{program.steps}"
        self.send(StepReady(name, name, step, f"llm/{tool}", "e", size, _TOKENS))

    def _decoded(self, names: list[str]) -> Decoded:
        calls = []
        for name in names:
            self.contexts[name] += 1
            step = f"{name}#{self.core.world.programs[name].steps}"
            calls.append((name, step, self.contexts[name]))
        return Decoded("e", tuple(calls))

    def step(self) -> float:
        """Seconds of the core for one step of the engine."""
        self.spent = 0.0
        self.now += 0.02
        while self.wakes and min(self.wakes) <= self.now:
            self.wakes.remove(min(self.wakes))
            self.send(Tick())
        count = min(len(self.started), self.running)
        self.send(self._decoded(self.started[:count]))
        rate = count / _TOKENS
        for _ in range(int(rate) + (self.rng.random() < rate % 1)):
            self.finish(self.started.pop(self.rng.randrange(count)))
        return self.spent


def measure(
    policy: str, steps: int = 4_000, live: int = _LIVE, running: int = _RUNNING
) -> dict[str, float]:
    """Milliseconds of the core for each engine step."""
    load = _Load(policy, live, running)
    for _ in range(steps // 4):
        load.step()
    times = sorted(1e3 * load.step() for _ in range(steps))
    return {
        "live": len(load.core.world.programs),
        "running": min(running, len(load.started)),
        "median_ms": statistics.median(times),
        "p99_ms": times[int(0.99 * len(times))],
        "max_ms": times[-1],
    }


def main(policy: str, json: bool) -> int:
    found = {name.strip(): measure(name.strip()) for name in policy.split(",")}
    if json:
        show.emit(found)
        return 0
    table = Table(
        "policy", "live", "running", "median", "p99", "largest", title="core, an engine step"
    )
    for name, row in found.items():
        times = (f"{row[key]:.3f} ms" for key in ("median_ms", "p99_ms", "max_ms"))
        table.add_row(name, f"{row['live']:,.0f}", f"{row['running']:,.0f}", *times)
    show.console().print(table)
    return 0


__all__ = ["main", "measure"]
