"""`drawloom bench rivals`: install, start, play, compare."""

import asyncio
import contextlib
import json
import os
import platform
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drawloom.errors import ConfigError
from drawloom.runtime.bench.rivals import results, systems
from drawloom.runtime.bench.rivals.client import Way, play
from drawloom.runtime.bench.rivals.install import Installed
from drawloom.runtime.bench.rivals.results import Load, Run
from drawloom.runtime.bench.rivals.servers import StartFailed, lines, on_cores
from drawloom.runtime.bench.rivals.speed import KV_TOKENS, UNITS, Speed, asked
from drawloom.runtime.bench.rivals.systems import Setting, started
from drawloom.runtime.bench.rivals.tasks import WORKLOADS, Shape, Task, make
from drawloom.runtime.console import output
from drawloom.runtime.sim.workload import Job, read

HISTORIES = ("sampled", "rewritten")
_ROOM = 1.3  # tokens of a text over its words, with the template: never less
_SPEED_TITLE = "engine only, best of rounds; openvino is a library, without HTTP"
_SLOT = 1200  # tokens of a context of the engine rows: 16 of them at a time


@dataclass(frozen=True, slots=True)
class Options:
    """Select systems, workloads and loads; see `drawloom bench rivals --help`."""

    folder: Path
    model: str = "smollm2"
    systems: tuple[str, ...] = systems.SYSTEMS
    workloads: tuple[str, ...] = ("coding-text",)
    histories: tuple[str, ...] = HISTORIES[:1]
    programs: tuple[int, ...] = (4, 8, 16, 24)
    kv_tokens: int = 16_384
    threads: int = 1
    rounds: int = 2
    trace: Path | None = None
    shape: Shape = field(default_factory=Shape)
    stream: bool = True
    engine_rows: bool = True
    dtype: str = "bfloat16"
    json: Path | None = None
    picture: Path | None = None


def cache() -> Path:
    """Return the folder that rivals are installed in by default."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "drawloom/rivals"


def names(text: str) -> tuple[str, ...]:
    """Return the words between commas."""
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers between commas. Raise `ConfigError` for what is none, or less than 1."""
    try:
        found = tuple(int(word) for word in names(text))
    except ValueError:
        found = (0,)
    if min(found, default=1) < 1:
        raise ConfigError(f"programs {text!r}: numbers from 1 on, with commas between them")
    return found


def workloads(text: str) -> tuple[str, ...]:
    """Return the workloads between commas; all of them for "all". Raise `ConfigError`."""
    found = WORKLOADS if text == "all" else names(text)
    for name in found:
        if name not in WORKLOADS:
            raise ConfigError(f"workload {name!r}: choose of {', '.join(WORKLOADS)}, or all")
    return found


def main(options: Options) -> int:
    """Measure and print. Return 0 unless nothing could be measured."""
    for name in options.systems:
        systems.known(name)
    for history in options.histories:
        if history not in HISTORIES:
            raise ConfigError(f"history {history!r}: choose of {', '.join(HISTORIES)}")
    bench = Bench(options)
    with _stopped_by_signal():
        try:
            asyncio.run(bench.run())
        except KeyboardInterrupt:
            output.note("interrupted: this is what was measured")
    bench.report()
    return 0 if bench.runs or bench.speed else 1


@contextlib.contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """End as Ctrl-C does where the process is told to end, so that servers are stopped."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def cores(threads: int) -> tuple[frozenset[int] | None, frozenset[int] | None]:
    """Return the cores of servers (the last ones) and of clients.

    Both are None where the machine has too few cores to keep them apart.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) <= threads:
        return None, None
    return frozenset(allowed[-threads:]), frozenset(allowed[:-threads])


class Bench:
    """Run a comparison and collect its measurements."""

    def __init__(self, options: Options) -> None:
        import torch

        self.options = options
        self.runs: list[Run] = []
        self.speed: dict[str, dict[str, list[float]]] = {}
        self.failed: dict[str, str] = {}
        self._installed = Installed(options.folder, output.note)
        self._logs = options.folder / "logs"
        self._cuda = torch.cuda.is_available()
        self._began = time.strftime("%Y-%m-%d %H:%M")

    async def run(self) -> None:
        """Measure all rounds: every other one in the reverse order."""
        model = self._installed.model(self.options.model)
        servers, clients = (None, None) if self._cuda else cores(self.options.threads)
        if servers is None and not self._cuda:
            output.note("too few cores for servers and clients apart: they share them")
        options = self.options
        self.setting = Setting(
            installed=self._installed,
            model=model,
            kv_tokens=options.kv_tokens,
            threads=options.threads,
            cores=servers,
            clients=clients,
            dtype=options.dtype,
            cuda=self._cuda,
        )
        for number in range(options.rounds):
            names = options.systems[:: -1 if number % 2 else 1]
            for name in names:
                if options.programs and name != systems.LIBRARY:
                    await self._tried(name, self._agents(name, number))
            for name in names:
                if options.engine_rows and name in systems.ENGINES:
                    await self._tried(name, self._speed(name, number))

    async def _tried(self, name: str, measuring: Coroutine[Any, Any, None]) -> None:
        if name in self.failed:
            measuring.close()
            return
        try:
            with on_cores(self.setting.clients):
                await measuring
        except StartFailed as error:
            self.failed[name] = str(error)
            output.note(f"{name} is left out: {error}")
        self._write()

    async def _agents(self, name: str, number: int) -> None:
        loads = list(self._loads(number))
        peak = max(_largest(task) for _, tasks in loads for task in tasks)
        output.note(f"round {number + 1}, {name}: starting")
        before = time.monotonic()
        async with started(name, self.setting, peak, self._logs) as url:
            output.note(f"  serves after {time.monotonic() - before:.0f} s; warming up")
            way = Way(systems.has_ids(name), self.options.stream)
            await play(url, _warm_up(number), way)
            banned = special_tokens(self.setting.model)
            for load, tasks in loads:
                here = replace(way, banned=banned if load.history == "sampled" else ())
                played, makespan = await play(url, tasks, here)
                self.runs.append(Run(load, name, number, tuple(played), makespan))
                found = results.figures(self.runs[-1:])
                output.note(
                    f"  {load.workload}, {load.history}, {load.programs} programs: JCT mean "
                    f"{found.jct_mean:.1f} s, p95 {found.jct_p95:.1f} s, makespan {makespan:.1f} s"
                )
                errors = [one.error for one in played if one.error]
                if errors:
                    output.note(f"  {len(errors)} programs failed, the first by {errors[0]}")

    async def _speed(self, name: str, number: int) -> None:
        output.note(f"round {number + 1}, {name}: engine rows")
        setting = replace(self.setting, kv_tokens=max(KV_TOKENS, self.options.kv_tokens))
        vocabulary = json.loads((setting.model / "config.json").read_text())["vocab_size"]
        async for row, value in self._rows(name, setting, vocabulary, number):
            self.speed.setdefault(name, {}).setdefault(row, []).append(value)
            output.note(f"  {row}: {value:,.4g} {UNITS[row]}")

    async def _rows(
        self, name: str, setting: Setting, vocabulary: int, number: int
    ) -> AsyncIterator[tuple[str, float]]:
        if name == systems.LIBRARY:
            command = systems.openvino(setting, json.dumps(asked(vocabulary)), number)
            async for line in lines(command, self._logs):
                if line.startswith("{"):
                    found = json.loads(line)
                    yield found["row"], found["value"]
            return
        async with started(name, setting, _SLOT, self._logs) as url:
            await play(url, _warm_up(number), Way())
            async for row in Speed(url, vocabulary, number).rows():
                yield row

    def _loads(self, number: int) -> Iterator[tuple[Load, list[Task]]]:
        """Yield the loads of one round, the same for all systems.

        Texts of two loads share no prefix, so that no load finds the KV of another.
        """
        options, jobs = self.options, self._jobs()
        kinds = dict.fromkeys(
            (workload, "rewritten" if workload == "coding-tools" else history)
            for workload in options.workloads
            for history in options.histories
        )
        for workload, history in kinds:
            for programs in options.programs:
                salt = f"{number}/{history}/{programs}"
                rewritten = history == "rewritten"
                tasks = make(workload, programs, salt, jobs, options.shape, rewritten)
                yield Load(workload, history, programs), tasks

    def _jobs(self) -> list[Job]:
        return read(self.options.trace) if self.options.trace is not None else []

    @property
    def _about(self) -> dict[str, Any]:
        options = self.options
        return {
            "at": self._began,
            "machine": platform.processor() or platform.machine(),
            "model": options.model,
            "dtype": options.dtype,
            "kv_tokens": options.kv_tokens,
            "threads": options.threads,
            "rounds": options.rounds,
            "trace": str(options.trace or "synthetic"),
            "stream": options.stream,
        }

    def _write(self) -> None:
        """Keep all figures so far, whatever happens next."""
        path = self.options.json
        if path is not None and str(path) != "-":
            found = results.plain(self._about, self.runs, self.speed, self.failed)
            path.write_text(json.dumps(found, indent=1))

    def report(self) -> None:
        """Print tables or JSON, and draw the picture."""
        self._write()
        options, found = self.options, results.summary(self.runs)
        if options.picture is not None and found:
            from drawloom.runtime.console.completion_plot import save_lines

            title = f"mean JCT over programs at once, {options.kv_tokens:,} tokens of KV"
            save_lines(options.picture, title, "seconds", results.lines(found))
        if str(options.json) == "-":
            output.emit(results.plain(self._about, self.runs, self.speed, self.failed))
            return
        title = ", ".join(f"{key} {value}" for key, value in self._about.items())
        if found:
            output.console().print(results.agents_table(found, title))
            first = "the first streamed text" if options.stream else "the whole answer"
            output.note(
                f"seconds; TTFT: to {first} of all calls but a program's first; computed: prompt "
                "tokens not cached, a round; × vLLM: its mean JCT over this one"
            )
        if self.speed:
            output.console().print(results.speeds_table(self.speed, _SPEED_TITLE))
        for name, why in self.failed.items():
            output.note(f"{name} was left out: {why.splitlines()[0]}")


def _largest(task: Task) -> int:
    """Return a bound on the tokens of a task's context at its largest, all choices included."""
    words = sum(len(str(message).split()) for turn in task.turns for message in turn.added)
    said = sum(turn.output * turn.choices for turn in task.turns)
    return int(_ROOM * (words + said + 250))


def _warm_up(number: int) -> list[Task]:
    """Return tasks of many shapes that run without pauses: vLLM compiles on first shapes."""
    small, salt = Shape(turns=3, peak=600), f"warm{number}"
    tasks = make("coding-tools", 3, salt, shape=small) + make("chats", 3, salt)
    return [
        replace(task, turns=tuple(replace(turn, gap=0.0) for turn in task.turns[:3]))
        for task in tasks
    ]


def special_tokens(model: Path) -> tuple[int, ...]:
    """Return the ids of the tokens that no text has."""
    found = json.loads((model / "tokenizer.json").read_text())
    return tuple(token["id"] for token in found["added_tokens"] if token["special"])


__all__ = [
    "HISTORIES",
    "Bench",
    "Options",
    "cache",
    "cores",
    "main",
    "names",
    "numbers",
    "special_tokens",
    "workloads",
]
