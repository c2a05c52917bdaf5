"""Runs of the demo: the same programs under two policies, in turn."""

import asyncio
import contextlib
import itertools
import random
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from drawloom.engine.api.engine import EngineStats
from drawloom.engine.config import EngineConfig
from drawloom.errors import DrawloomError
from drawloom.runtime.console.timeline import Activity, Track, make_track
from drawloom.runtime.demo.agent import solve
from drawloom.runtime.demo.tasks import BOX, Task, make_task
from drawloom.runtime.dispatch.backends import TINY
from drawloom.runtime.sdk.options import SandboxOptions
from drawloom.runtime.sdk.run import Run
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.sandbox.docker.demo_image import build_box
from drawloom.sandbox.docker.private_daemon import PrivateDaemon, answers

POLICIES = ("fcfs-lru", "drawloom")
# most answers are in long observations, as in practice; contexts fit into the model's 2,048
_FAMILIES = ("report", "hop", "lookup", "sum", "report", "largest", "hop", "count", "append")
_ROWS = (16, 24)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Configure a demo.

    Attributes:
        programs: number of programs.
        questions: questions of each program, one after the other in one conversation.
        gap: mean seconds between two arrivals.
        rounds: runs of each policy; the median round is shown.
        kv_tokens: tokens of KV cache; too few on purpose for the contexts of all programs.
        model: a model folder, a hub id, or the bundled model.
        seed: seed of tasks and arrivals; the bundled model solves all tasks of the default.
        device: auto, cpu or cuda.
        sandbox: auto, docker or process.
    """

    programs: int = 32
    questions: int = 7
    gap: float = 0.1
    rounds: int = 3
    kv_tokens: int = 3072
    model: str = TINY
    seed: int = 22
    device: str = "auto"
    sandbox: str = "auto"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Keep the measurements of one policy in one round.

    Attributes:
        policy: name of the policy.
        answers: answers of each program.
        solved: programs with right answers only.
        jct: completion times, in seconds.
        ttft: times to first token of later calls, in seconds.
        stats: counters of the engine.
        env_claims, env_warm_claims: claims of environments, and those that found a warm one.
        env_stall, env_cold, env_idle: seconds that programs waited for environments, that making
            them took, and that warm ones were idle.
        tracks: timelines of the programs.
    """

    policy: str
    answers: tuple[tuple[str, ...], ...]
    solved: int
    jct: tuple[float, ...]
    ttft: tuple[float, ...]
    stats: EngineStats
    env_claims: int
    env_warm_claims: int
    env_stall: float
    env_cold: float
    env_idle: float
    tracks: tuple[Track, ...]

    @property
    def jct_mean(self) -> float:
        """Return the mean completion time, in seconds."""
        return statistics.fmean(self.jct)

    @property
    def spent(self) -> dict[str, float]:
        """Return mean seconds of a program by activity; ``other`` is the rest of its time."""
        apart = (Activity.LEASED, Activity.DEAD)
        seconds = {a.value: 0.0 for a in Activity if a not in apart}
        for track in self.tracks:
            for bar in track.bars:
                if bar.activity not in apart:
                    seconds[bar.activity] += (bar.end - bar.start) / len(self.tracks)
        # calls of one turn run concurrently, so the sum may slightly exceed the total
        return seconds | {"other": max(0.0, self.jct_mean - sum(seconds.values()))}


Progress = Callable[[str, int, int, int, int], None]


def make_tasks(programs: int, questions: int, seed: int) -> list[list[Task]]:
    """Draw tasks of all families in turn for each program.

    Names of files are held out from training, and no file occurs twice in one program.
    """
    rng, families = random.Random(seed), itertools.cycle(_FAMILIES)
    made = []
    for _ in range(programs):
        several: list[Task] = []
        while len(several) < questions:
            task = make_task(rng, family=next(families), held_out=True, rows=_ROWS)
            if not any(task.files.keys() & other.files.keys() for other in several):
                several.append(task)
        made.append(several)
    return made


@contextlib.contextmanager
def docker_engine(sandbox: str) -> Iterator[str | None]:
    """Provide a Docker engine; yield its URL, or None for the default engine or for none.

    If no engine answers, a private one runs until the block is left, as far as this process may
    start one.
    """
    if sandbox not in ("auto", "docker"):
        yield None
    elif answers():
        _quietly_build(None)
        yield None
    elif PrivateDaemon.possible():
        with PrivateDaemon() as url:
            _quietly_build(url)
            yield url
    else:
        yield None


def _quietly_build(url: str | None) -> None:
    with contextlib.suppress(DrawloomError):  # the first claim then reports the missing image
        build_box(url)


async def run_demo(
    options: DemoOptions, docker: str | None, progress: Progress = lambda *a: None
) -> dict[str, list[Outcome]]:
    """Run every policy `rounds` times, interleaved, so that other load affects both.

    Args:
        options: the configuration.
        docker: URL of a Docker engine; None for the default one.
        progress: called with policy, round, and numbers of all, started and ended programs.

    Returns:
        The rounds of each policy.
    """
    if options.sandbox == "auto" and not answers(docker):
        # the commands are trusted, so incomplete isolation of local processes is acceptable
        options = replace(options, sandbox="process")
    tasks = make_tasks(options.programs, options.questions, options.seed)
    outcomes: dict[str, list[Outcome]] = {policy: [] for policy in POLICIES}
    for index in range(options.rounds):
        order = POLICIES if index % 2 == 0 else POLICIES[::-1]
        for policy in order:
            outcomes[policy].append(await _run(options, docker, policy, index, tasks, progress))
    return outcomes


async def _run(
    options: DemoOptions,
    docker: str | None,
    policy: str,
    index: int,
    tasks: list[list[Task]],
    progress: Progress,
) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="drawloom-demo-") as folder:
        runtime = Runtime(
            options.model,
            store=f"sqlite:///{folder}/demo.db",
            policy=policy,
            engine=EngineConfig(device=options.device, kv_tokens=options.kv_tokens),
            sandbox=SandboxOptions(provider=options.sandbox, docker=docker, warm=options.programs),
        )
        async with runtime, _reporting(runtime, policy, index, len(tasks), progress):
            progress(policy, index, len(tasks), 0, 0)
            await _make_containers(runtime, options.programs)
            runs = await _arrive(runtime, tasks, options)
            answers = await asyncio.gather(*(r.result() for r in runs), return_exceptions=True)
            said = tuple(
                (f"{type(a).__name__}: {a}",) if isinstance(a, BaseException) else tuple(a)
                for a in answers
            )
            return await _measure(runtime, policy, tasks, [r.id for r in runs], said)


async def _make_containers(runtime: Runtime, count: int) -> None:
    """Wait until there is a warm container for every program."""
    pool = runtime.dispatcher.pool
    if pool is not None:
        pool.target(BOX, count)
        while pool.counts(BOX.key)[0] < count:
            await asyncio.sleep(0.05)


async def _arrive(
    runtime: Runtime, tasks: list[list[Task]], options: DemoOptions
) -> list[Run[Any]]:
    """Start the programs at random times, which are the same for every policy."""
    rng, clock = random.Random(options.seed), asyncio.get_running_loop().time
    runs, due = [], clock()
    for several in tasks:
        await asyncio.sleep(due - clock())
        runs.append(await runtime.start(solve, *_arguments(several)))
        due += rng.expovariate(1 / options.gap) if options.gap else 0.0
    return runs


def _arguments(several: list[Task]) -> tuple[list[str], dict[str, str]]:
    files = {name: text for task in several for name, text in task.files.items()}
    return [task.question for task in several], files


def _solved(several: list[Task], said: tuple[str, ...]) -> bool:
    """Tell whether every question of a program was answered right."""
    pairs = zip(several, said, strict=False)
    return len(said) == len(several) and all(task.is_solved_by(a) for task, a in pairs)


@contextlib.asynccontextmanager
async def _reporting(
    runtime: Runtime, policy: str, index: int, total: int, progress: Progress
) -> AsyncIterator[None]:
    counts = {"program.started": 0, "program.ended": 0}

    async def watch() -> None:
        async for notice in runtime.bus.subscribe():
            if notice.kind in counts:
                counts[notice.kind] += 1
                started, ended = counts["program.started"], counts["program.ended"]
                progress(policy, index, total, started, ended)

    task = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _measure(
    runtime: Runtime,
    policy: str,
    tasks: list[list[Task]],
    ids: list[str],
    answers: tuple[tuple[str, ...], ...],
) -> Outcome:
    dispatcher = runtime.dispatcher
    await dispatcher.settle()
    tracks = []
    ttft: list[float] = []
    for id in ids:
        row, steps = await runtime.store.program(id), await runtime.store.steps(id)
        tracks.append(make_track(row, steps, await runtime.store.decisions(id)))
        calls = [s for s in steps if s.kind == "llm" and s.detail["times"]]
        ttft += [s.detail["times"]["first"] - s.started for s in calls[1:]]
    pool = dispatcher.pool.counters if dispatcher.pool is not None else None
    return Outcome(
        policy=policy,
        answers=answers,
        solved=sum(_solved(several, said) for several, said in zip(tasks, answers, strict=True)),
        jct=tuple(t.ended - t.created for t in tracks),
        ttft=tuple(ttft),
        stats=await dispatcher.engine.stats(),
        env_claims=pool.claims if pool else 0,
        env_warm_claims=pool.warm_claims if pool else 0,
        env_stall=dispatcher.environments.stall,
        env_cold=pool.cold_seconds if pool else 0.0,
        env_idle=pool.idle_seconds if pool else 0.0,
        tracks=tuple(tracks),
    )


__all__ = ["DemoOptions", "Outcome", "docker_engine", "run_demo"]
