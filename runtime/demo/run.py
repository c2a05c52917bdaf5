"""The demo: the same programs under two policies, in turn, and a table of what it cost."""

import asyncio
import contextlib
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drawloom.engine.base import EngineStats
from drawloom.errors import DrawloomError
from drawloom.runtime.demo.agent import solve
from drawloom.runtime.demo.tasks import FAMILIES, Task, make_task
from drawloom.runtime.opening import TINY
from drawloom.runtime.picture import Panel
from drawloom.runtime.runtime import Runtime
from drawloom.runtime.timeline import Activity, Track, make_track
from drawloom.sandbox.daemon import PrivateDaemon, answers
from drawloom.sandbox.images import build_box

POLICIES = ("fcfs-lru", "drawloom")
_ROWS = (14, 24)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`kv_tokens` is too small for all programs on purpose: their contexts do not fit at once."""

    programs: int = 32
    questions: int = 4
    rounds: int = 3
    kv_tokens: int = 3072
    pool: int = 8
    model: str = TINY
    seed: int = 20
    device: str = "auto"
    sandbox: str = "auto"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy did in one round. Tokens and counts are sums, times in seconds."""

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
        return statistics.fmean(self.jct)


Progress = Callable[[str, int, int, int, int], None]


def make_tasks(programs: int, questions: int, seed: int) -> list[list[Task]]:
    """Held-out tasks for each program, all families in turn: names that were never trained on,
    and no file twice in one program."""
    rng, families = random.Random(seed), itertools.cycle(FAMILIES)
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
    """The URL of a Docker engine to use: None for the one that answers by itself, or for none.

    Where none answers and this is root on a host with `dockerd`, a private one runs meanwhile.
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
    with contextlib.suppress(DrawloomError):  # without the image the claim says what is missing
        build_box(url)


async def run_demo(
    options: DemoOptions, docker: str | None, progress: Progress = lambda *a: None
) -> dict[str, list[Outcome]]:
    """Every policy `rounds` times, interleaved, so that a busy machine is busy for both."""
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
            sandbox=options.sandbox,
            docker=docker,
            pool=options.pool,
            kv_tokens=options.kv_tokens,
            device=options.device,
        )
        async with runtime, _reporting(runtime, policy, index, len(tasks), progress):
            began = time.time()
            runs = [await runtime.start(solve, *_arguments(several)) for several in tasks]
            answers = await asyncio.gather(*(r.result() for r in runs), return_exceptions=True)
            said = tuple(
                (f"{type(a).__name__}: {a}",) if isinstance(a, BaseException) else tuple(a)
                for a in answers
            )
            return await _measure(runtime, policy, began, tasks, [r.id for r in runs], said)


def _arguments(several: list[Task]) -> tuple[list[str], dict[str, str]]:
    files = {name: text for task in several for name, text in task.files.items()}
    return [task.question for task in several], files


def _solved(several: list[Task], said: tuple[str, ...]) -> bool:
    """Whether every question of a program was answered right."""
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
    began: float,
    tasks: list[list[Task]],
    ids: list[str],
    answers: tuple[tuple[str, ...], ...],
) -> Outcome:
    live = runtime.live
    await live.settle()
    tracks = []
    ttft: list[float] = []
    for id in ids:
        row, steps = await runtime.store.program(id), await runtime.store.steps(id)
        tracks.append(make_track(row, steps, await runtime.store.decisions(id)))
        calls = [s for s in steps if s.kind == "llm" and s.detail["times"]]
        ttft += [s.detail["times"]["first"] - s.started for s in calls[1:]]
    pool = live.pool.counters if live.pool is not None else None
    return Outcome(
        policy=policy,
        answers=answers,
        solved=sum(_solved(several, said) for several, said in zip(tasks, answers, strict=True)),
        jct=tuple(t.ended - began for t in tracks),
        ttft=tuple(ttft),
        stats=await live.engine.stats(),
        env_claims=pool.claims if pool else 0,
        env_warm_claims=pool.warm_claims if pool else 0,
        env_stall=live.environments.stall,
        env_cold=pool.cold_seconds if pool else 0.0,
        env_idle=pool.idle_seconds if pool else 0.0,
        tracks=tuple(tracks),
    )


def summarise(outcomes: dict[str, list[Outcome]]) -> dict[str, Any]:
    """The object that ``drawloom demo --json`` prints. Times are of the median round by mean JCT,
    counts of the same round, so that they belong together."""
    middle = {p: sorted(o, key=lambda x: x.jct_mean)[len(o) // 2] for p, o in outcomes.items()}
    reference = outcomes[POLICIES[0]][0].answers
    equal = all(o.answers == reference for several in outcomes.values() for o in several)
    first = next(iter(middle.values()))
    return {
        "programs": len(first.answers),
        "policies": {policy: _row(outcome, equal) for policy, outcome in middle.items()},
        "jct_mean_s_by_round": {
            p: [o.jct_mean for o in several] for p, several in outcomes.items()
        },
    }


def _row(outcome: Outcome, equal: bool) -> dict[str, Any]:
    stats = outcome.stats
    hidden = 1 - outcome.env_stall / outcome.env_cold if outcome.env_cold else None
    return {
        "solved": outcome.solved,
        "answers_equal": equal,
        "jct_mean_s": outcome.jct_mean,
        "jct_p95_s": quantile(outcome.jct, 0.95),
        "ttft_p99_s": quantile(outcome.ttft, 0.99),
        "prompt_tokens": stats.prompt_tokens,
        "recomputed_tokens": stats.recomputed_tokens,
        "prefix_hit_tokens": stats.hit_tokens,
        "env_claims": outcome.env_claims,
        "env_warm_claims": outcome.env_warm_claims,
        "env_wait_hidden": hidden,
        "env_idle_s": outcome.env_idle,
    }


def quantile(values: tuple[float, ...], share: float) -> float:
    """The nearest-rank quantile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def panels(outcomes: dict[str, list[Outcome]]) -> list[Panel]:
    """A picture of each policy's median round."""
    made = []
    for policy, several in outcomes.items():
        outcome = sorted(several, key=lambda x: x.jct_mean)[len(several) // 2]
        shares = {a: 0.0 for a in Activity}
        for track in outcome.tracks:
            for bar in track.bars:
                shares[bar.activity] += bar.end - bar.start
        note = (
            f"mean {outcome.jct_mean:.2f} s, {outcome.stats.recomputed_tokens} prompt tokens "
            f"computed twice, {outcome.env_warm_claims} of {outcome.env_claims} environments warm, "
            f"{shares[Activity.TOOL]:.1f} s in tools"
        )
        made.append(Panel(policy, note, outcome.tracks))
    return made


def save_pictures(outcomes: dict[str, list[Outcome]], folder: Path) -> list[Path]:
    """Write ``demo.html`` and ``demo.png``."""
    from drawloom.runtime.picture import save_html, save_png

    made = panels(outcomes)
    heading = (
        f"drawloom demo: {len(made[0].tracks)} programs, one row each, on {os.cpu_count()} cores"
    )
    page, image = folder / "demo.html", folder / "demo.png"
    save_html(page, made, heading)
    save_png(image, made, heading)
    return [page, image]


__all__ = ["DemoOptions", "Outcome", "docker_engine", "run_demo", "save_pictures", "summarise"]
