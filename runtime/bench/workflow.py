"""`drawloom bench workflow`: a workload replayed against the live engine under each policy, and in
the simulator with the costs that were measured on this machine.

Programs say nothing of their own: prompts are random tokens that begin with the context they go
on from, as the workload says, outputs have the length that it says, tools are pauses. Tokens and
seconds are scaled by factors that the table states, so that a small random model on a CPU is as
busy between pauses as the preset's engine would be. Policies run in turn on the same drawn
programs, each on an empty cache.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from drawloom.engine.base import EngineStats, GenerateRequest, Usage
from drawloom.engine.checkpoint import dummy
from drawloom.engine.core import EngineCore
from drawloom.engine.local import LocalEngine
from drawloom.engine.sequence import SamplingParams
from drawloom.events import (
    Forked,
    LineageEnded,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
)
from drawloom.runtime.bench.engine import engine as make_core
from drawloom.runtime.bench.engine import shape
from drawloom.runtime.bench.profile import profile
from drawloom.runtime.bus import LocalBus
from drawloom.runtime.cli import show
from drawloom.runtime.curves import save_curves
from drawloom.runtime.live import Live
from drawloom.runtime.llmcall import spans
from drawloom.runtime.scheduler import make_policy
from drawloom.runtime.sim.generate import generate
from drawloom.runtime.sim.loop import Ended, Simulation, lineage_of
from drawloom.runtime.sim.presets import Machine, machine
from drawloom.runtime.sim.report import isolated, programs
from drawloom.runtime.sim.workload import Call, Job, Mix, read
from drawloom.runtime.store import Store

_VOCABULARY = 4_096
_CONTEXT = 8_192
_DIFFERENT = 1.1
_ALONE = 60
_BUSY = "h200-8b"


@dataclass(frozen=True, slots=True)
class Replay:
    """What is replayed: `there` programs at a time, `count` in all, at `pressure`; each token of
    the workload is `tokens`, each second of a pause `seconds`."""

    workload: str
    there: int = 12
    count: int = 36
    pressure: float = 0.4
    tokens: float = 1 / 32
    host: bool = True
    seed: int = 0


def scaled(jobs: Sequence[Job], tokens: float, seconds: float) -> list[Job]:
    """The same programs, smaller and quicker; contexts still begin with what they began with."""
    return [_scaled(job, tokens, seconds) for job in jobs]


def _scaled(job: Job, tokens: float, seconds: float) -> Job:
    calls: list[Call] = []
    for at, call in enumerate(job.calls):
        base = job.base(at)
        most = calls[base].context if base >= 0 else 10**9
        prompt = max(2, round(call.prompt * tokens))
        reuse = min(round(call.reuse * tokens), most, prompt - 1)
        output = max(1, round(call.output * tokens))
        gap = call.gap * seconds
        calls.append(replace(call, prompt=prompt, reuse=reuse, output=output, gap=gap))
    shared = min(round(job.shared * tokens), calls[0].prompt - 1)
    return replace(job, calls=tuple(calls), shared=shared, arrival=job.arrival * seconds)


class Player:
    """Plays programs against a live loop, and notes when each step was ready, begun and done."""

    def __init__(self, live: Live, jobs: Sequence[Job]) -> None:
        self.live, self.jobs = live, jobs
        self.rng = random.Random(1)
        self.ended: list[Ended] = []
        self.fresh = self.recomputed = self.output = 0
        self._prefixes: dict[str, list[int]] = {}

    async def run(self) -> None:
        self.began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for job in self.jobs:
                group.create_task(self._program(job))

    def _now(self) -> float:
        return time.monotonic() - self.began

    async def _program(self, job: Job) -> None:
        await asyncio.sleep(max(0.0, job.arrival - self._now()))
        result = Ended(job, self._now())
        self.live.emit(ProgramSubmitted(job.id, job.agent, job.tenant))
        done = [asyncio.Event() for _ in job.calls]
        contexts: dict[int, list[int]] = {}
        left = dict.fromkeys((call.chat for call in job.calls), 0)
        for call in job.calls:
            left[call.chat] += 1
        async with asyncio.TaskGroup() as group:
            for at in range(len(job.calls)):
                group.create_task(self._call(result, at, done, contexts, left))
        result.ended = self._now()
        self.ended.append(result)
        self.live.emit(ProgramEnded(job.id))

    async def _call(
        self,
        result: Ended,
        at: int,
        done: list[asyncio.Event],
        contexts: dict[int, list[int]],
        left: dict[int, int],
    ) -> None:
        job, call = result.job, result.job.calls[at]
        for before in job.after(at):
            await done[before].wait()
        await asyncio.sleep(max((job.calls[n].gap for n in job.after(at)), default=0.0))
        base, lineage = job.base(at), lineage_of(job.id, call.chat)
        if base >= 0 and job.calls[base].chat != call.chat:
            parent, engine = lineage_of(job.id, job.calls[base].chat), self.live.engine.info.id
            self.live.emit(Forked(job.id, parent, lineage, engine))
            self.live.fork(parent, lineage)
        begin = contexts[base][: call.reuse] if base >= 0 else self._prefix(job)
        new = [self.rng.randrange(3, _VOCABULARY) for _ in range(call.prompt - len(begin))]
        tokens, ready = begin + new, self._now()
        said, usage = await self._generate(job, at, lineage, tokens)
        contexts[at] = tokens + said
        left[call.chat] -= 1
        wait = usage.first - self.began - ready
        known = len(begin) if base >= 0 else 0
        self.recomputed += max(0, known - usage.cached_tokens)
        self.fresh += len(tokens) - known + len(said)
        self.output += len(said)
        if at:
            result.waits.append(wait)
        else:
            result.admission = wait
        if not left[call.chat] and call.chat:
            self.live.emit(LineageEnded(job.id, lineage))
        done[at].set()

    def _prefix(self, job: Job) -> list[int]:
        known = self._prefixes.setdefault(job.prefix, [])
        known += [self.rng.randrange(3, _VOCABULARY) for _ in range(job.shared - len(known))]
        return known[: job.shared]

    async def _generate(
        self, job: Job, at: int, lineage: str, tokens: list[int]
    ) -> tuple[list[int], Usage]:
        live, call, engine = self.live, job.calls[at], self.live.engine.info.id
        step, before = f"{job.id}#{at}", job.base(at)
        state = f"{call.site}/{job.calls[before].tool if before >= 0 else ''}"
        start = live.expect_start(step)
        live.emit(StepReady(job.id, lineage, step, state, engine, len(tokens), call.output))
        priority = await start
        params = SamplingParams(max_tokens=call.output, ignore_eos=True)
        request = GenerateRequest(step, lineage, tuple(tokens), params, priority)
        said: list[int] = []
        usage: Usage | None = None
        async for delta in live.engine.generate(request):
            said += delta.tokens
            usage = delta.usage or usage
        assert usage is not None
        last = at + 1 == len(job.calls)
        live.emit(
            StepFinished(
                job.id, lineage, step, state, engine, len(tokens) + len(said),
                () if last else (call.tool,), len(tokens) - usage.cached_tokens, *spans(usage),
                final=last,
            )
        )  # fmt: skip
        return said, usage


class Bench:
    """One workload, one engine, costs measured once; policies in turn.

    Attributes:
        took: seconds of each program from its arrival to its end, of the last live run by policy.
    """

    def __init__(self, replay: Replay, jobs: Sequence[Job]) -> None:
        torch.set_num_threads(1)
        self.replay = replay
        self.took: dict[str, list[float]] = {}
        spec = shape(6, 256, _VOCABULARY, _CONTEXT)
        self._spec, self._weights = spec, dummy(spec, torch.float32)
        cost, _ = profile(self._core(_CONTEXT, _CONTEXT))
        small = scaled(jobs, replay.tokens, 1.0)
        # as busy between its pauses as the preset's engine: pauses shrink as computing does
        there = statistics.fmean(isolated(machine(_BUSY), jobs).values()) - _gaps(jobs)
        quick = replace(machine(_BUSY), cost=cost)
        here = statistics.fmean(isolated(quick, small).values()) - _gaps(small)
        self.seconds = here / there
        small = scaled(jobs, replay.tokens, self.seconds)
        mean_peak = statistics.fmean(job.peak for job in small)
        room = max(2 * max(job.peak for job in small), replay.pressure * replay.there * mean_peak)
        self.kv_tokens = 16 * round(room / 16)
        self.host_tokens = 4 * self.kv_tokens if replay.host else 0
        self.machine = Machine(cost, self.kv_tokens, self.host_tokens, 64, 512, unit=1)
        self._measure_calls()
        alone = isolated(self.machine, small)
        mix = Mix(tuple(small), replay.there, replay.count)
        self.drawn = mix.draw(replay.seed, statistics.fmean(alone.values()))
        self.alone = {job.id: alone[job.id.split(":", 1)[1]] for job in self.drawn}

    def _measure_calls(self) -> None:
        """The profile steps a core by hand; live, a call also crosses the scheduler, a thread and
        an event loop. What a program of many small calls takes alone, beside the profile."""
        prompts = [_ALONE + 20 * at for at in range(_ALONE)]
        calls = tuple(Call(p, max(0, p - 15), 5, 0.0, "t") for p in prompts)
        job = Job("0:alone", "alone", (replace(calls[0], reuse=0), *calls[1:]))
        self.drawn, self.alone = [job], isolated(self.machine, [job])
        found = self.live("fcfs-lru")
        self.took.clear()
        more = (found["jct_mean_s"] - self.alone[job.id]) / len(calls)
        cost = replace(self.machine.cost, call=max(0.0, more))
        self.machine = replace(self.machine, cost=cost)

    @property
    def pressure(self) -> float:
        """Capacity over working set, as it came out."""
        return self.kv_tokens / (self.replay.there * statistics.fmean(j.peak for j in self.drawn))

    def _core(self, kv_tokens: int, host_tokens: int) -> EngineCore:
        return make_core(
            self._spec, self._weights, torch.device("cpu"), kv_tokens=kv_tokens,
            host_tokens=host_tokens,
        )  # fmt: skip

    def live(self, policy: str) -> dict[str, float]:
        """Replay under a policy, on an engine of its own and in an event loop of its own."""
        return asyncio.run(self._live(policy))

    async def _live(self, policy: str) -> dict[str, float]:
        chosen = make_policy(policy)
        engine = LocalEngine(self._core(self.kv_tokens, self.host_tokens if chosen.spill else 0))
        store = await asyncio.to_thread(Store, "sqlite://")
        live = Live(chosen, engine, None, store, LocalBus(), record=False)
        live.scheduler.world.cost = self.machine.cost
        player = Player(live, self.drawn)
        began = time.monotonic()
        try:
            await player.run()
            seconds = time.monotonic() - began
            await live.settle()
            stats = await engine.stats()
        finally:
            await live.close()
            await engine.close()
            await store.close()
        self.took[policy] = [one.jct for one in player.ended]
        return self._figures(player.ended) | self._more(player, stats, seconds)

    def _more(self, player: Player, stats: EngineStats, seconds: float) -> dict[str, float]:
        hits = stats.hit_tokens + stats.hit_host_tokens
        return {
            "tokens_per_s": player.output / seconds,
            "steps_per_min": 60 * sum(len(job.calls) for job in self.drawn) / seconds,
            "recomputed_share": player.recomputed / max(1, player.fresh),
            "hit_share": hits / max(1, stats.prompt_tokens),
            "preemptions": stats.preemptions,
        }

    def simulated(self, policy: str) -> dict[str, float]:
        """The same programs on the same costs, in virtual time."""
        simulation = Simulation(self.machine, make_policy(policy), self.drawn, self.replay.host)
        return self._figures(simulation.run().ended)

    def _figures(self, ended: Sequence[Ended]) -> dict[str, float]:
        return programs(ended, [self.alone[one.job.id] for one in ended])


def main(replay: Replay, policies: Sequence[str], json: bool, plot: Path | None = None) -> int:
    """Raises `ConfigError` for a workload or policy that there is not, or a picture that cannot be
    written."""
    for name in policies:
        make_policy(name)
    path = Path(replay.workload)
    jobs = read(path) if path.exists() else generate(replay.workload)
    bench = Bench(replay, jobs)
    live: dict[str, dict[str, float]] = {}
    simulated: dict[str, dict[str, float]] = {}
    for name in policies:
        live[name] = bench.live(name)
        simulated[name] = bench.simulated(name)
        if not json:
            show.note(f"{name}: mean JCT {live[name]['jct_mean_s']:.2f} s")
    if plot is not None:
        save_curves(plot, f"{path.name}, live, {replay.count} programs", bench.took)
        if not json:
            show.note(f"picture: {plot}")
    means = [{n: row["jct_mean_s"] for n, row in rows.items()} for rows in (live, simulated)]
    errors = [abs(means[1][name] / means[0][name] - 1) for name in policies]
    about = {
        "workload": replay.workload, "programs": replay.count, "in_flight": replay.there,
        "pressure": bench.pressure, "tokens_scale": replay.tokens, "seconds_scale": bench.seconds,
        "kv_tokens": bench.kv_tokens, "host_tokens": bench.host_tokens,
        "kendall_tau": kendall(*means), "jct_error_mean": statistics.fmean(errors),
    }  # fmt: skip
    if json:
        show.emit(about | {"live": live, "simulated": simulated})
        return 0
    _print(about, live, simulated)
    return 0


_SHOWN = {
    "jct_mean_s": ("JCT mean", "{:.2f}"), "jct_p50_s": ("p50", "{:.2f}"),
    "jct_p95_s": ("p95", "{:.2f}"), "jct_p99_s": ("p99", "{:.2f}"),
    "jct_less_gaps_mean_s": ("less gaps", "{:.2f}"), "admission_mean_s": ("admission", "{:.2f}"),
    "ttft_p50_s": ("TTFT p50", "{:.3f}"), "ttft_p99_s": ("p99", "{:.2f}"),
    "tokens_per_s": ("tokens/s", "{:.0f}"), "steps_per_min": ("steps/min", "{:,.0f}"),
    "recomputed_share": ("recomputed", "{:.1%}"), "hit_share": ("hits", "{:.0%}"),
    "slo_share": ("SLO", "{:.0%}"), "stretch_max": ("stretch", "{:.0f}"),
    "preemptions": ("preempted", "{:.0f}"),
}  # fmt: skip


def _print(
    about: dict[str, Any], live: dict[str, dict[str, float]], simulated: dict[str, dict[str, float]]
) -> None:
    title = (
        f"{about['workload']}: {about['programs']} programs, {about['in_flight']} in flight, "
        f"capacity / working set {about['pressure']:.2f}; tokens x {about['tokens_scale']:.4f}, "
        f"seconds x {about['seconds_scale']:.4f}"
    )
    table = Table(title=title)
    table.add_column("policy", no_wrap=True)
    for heading, _ in _SHOWN.values():
        table.add_column(heading, justify="right")
    table.add_column("simulated", justify="right")
    for name, row in sorted(live.items(), key=lambda item: item[1]["jct_mean_s"]):
        cells = (form.format(row[key]) for key, (_, form) in _SHOWN.items())
        table.add_row(name, *cells, f"{simulated[name]['jct_mean_s']:.2f}")
    show.console().print(table)
    show.note(
        f"live against simulated: Kendall tau {about['kendall_tau']:.2f} over pairs that differ by "
        f"more than a tenth, mean error of mean JCT {about['jct_error_mean']:.0%}"
    )


def _gaps(jobs: Sequence[Job]) -> float:
    return statistics.fmean(job.gaps for job in jobs)


def kendall(live: dict[str, float], simulated: dict[str, float]) -> float:
    """Over the pairs of policies that differ by more than a tenth live: how many are in the same
    order in the simulator less how many are not, as a share; 1 when there is no such pair."""
    pairs = [
        (a, b)
        for a, b in combinations(live, 2)
        if max(live[a], live[b]) > _DIFFERENT * min(live[a], live[b])
    ]
    same = sum((live[a] < live[b]) == (simulated[a] < simulated[b]) for a, b in pairs)
    return (2 * same - len(pairs)) / len(pairs) if pairs else 1.0


__all__ = ["Bench", "Player", "Replay", "kendall", "main", "scaled"]
