"""Benchmark of workflows: a workload replayed against the live engine under each policy, and in
the simulator with the costs that were measured on this machine.

Programs say nothing of their own: prompts are random tokens that begin with the context they go
on from, as the workload says, outputs have the length that it says, tools are pauses. Tokens and
seconds are scaled by factors that the table states, so that a small random model on a CPU is as
busy between pauses as the preset's engine would be. Policies run in turn on the same drawn
programs, each on an empty cache.
"""

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from drawloom.engine.api.engine import EngineStats
from drawloom.engine.config import EngineConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.hosting.thread_engine import ThreadEngine
from drawloom.engine.models.checkpoint import dummy
from drawloom.environments import Env
from drawloom.runtime.bench.calibrate import profile
from drawloom.runtime.bench.models import make_engine, small_llama
from drawloom.runtime.bench.replay_scaling import Replay, mean_gaps, mean_prompt, scaled
from drawloom.runtime.bench.scheduling.replayer import VOCABULARY, Player
from drawloom.runtime.console import output as show
from drawloom.runtime.console.completion_plot import save_curves
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.dispatch.event_bus import LocalBus
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.sim.presets import Machine, machine
from drawloom.runtime.sim.report import isolated, programs
from drawloom.runtime.sim.sim_host import SandboxSpec
from drawloom.runtime.sim.sim_program import Ended
from drawloom.runtime.sim.simulation import Simulation
from drawloom.runtime.sim.synthetic import generate
from drawloom.runtime.sim.workload import Call, Job, Mix, read
from drawloom.runtime.store.store import Store
from drawloom.sandbox.pool.warm_pool import PoolCounters, WarmPool
from drawloom.sandbox.testing.fake import FakeProvider

_CONTEXT = 8_192
_DIFFERENT = 1.1
_CALLS, _CROWD, _TRIES = 20, 6, 3
_SAMPLED = 0.02
_BUSY = "h200-8b"
_STARTS = 4
_AMPLE = SandboxSpec(slots=10_000, tools=10_000, starts=_STARTS, pull=math.inf, park=None)


class Bench:
    """Replay one workload on one engine, under policies in turn; costs are measured once."""

    def __init__(self, replay: Replay, jobs: Sequence[Job]) -> None:
        torch.set_num_threads(1)
        self.replay = replay
        self.took: dict[str, list[float]] = {}
        self._sizes = 1
        spec = small_llama(6, 256, VOCABULARY, _CONTEXT)
        self._spec, self._weights = spec, dummy(spec, torch.float32)
        cost, _ = profile(self._core(_CONTEXT, _CONTEXT))
        small = scaled(jobs, replay.tokens, 1.0)
        # as busy between its pauses as the preset's engine: pauses shrink as computing does
        there = statistics.fmean(isolated(machine(_BUSY), jobs).values()) - mean_gaps(jobs)
        quick = replace(machine(_BUSY), cost=cost)
        here = statistics.fmean(isolated(quick, small).values()) - mean_gaps(small)
        self.seconds = here / there
        small = scaled(jobs, replay.tokens, self.seconds)
        mean_peak = statistics.fmean(job.peak for job in small)
        room = max(2 * max(job.peak for job in small), replay.pressure * replay.there * mean_peak)
        self.kv_tokens = 16 * round(room / 16)
        self.host_tokens = 4 * self.kv_tokens if replay.host else 0
        self.machine = Machine(cost, self.kv_tokens, self.host_tokens, 64, 512, unit=1)
        self._measure_overheads(round(mean_prompt(small)))
        alone = isolated(self.machine, small)
        mix = Mix(tuple(small), replay.there, replay.count)
        self.drawn = mix.draw(replay.seed, statistics.fmean(alone.values()))
        self.alone = {job.id: alone[job.id.split(":", 1)[1]] for job in self.drawn}

    def _measure_overheads(self, context: int) -> None:
        """Measure what a live step and a live call take longer than the profile says.

        The profile steps a core by hand; live, each step also crosses a thread, and each call the
        scheduler.
        """
        few, many, crowd = 2, 32, 8
        short = self._excess(lambda: [self._small(context, few)])
        long = self._excess(lambda: [self._small(context, many)])
        step = max(0.0, (long - short) / (many - few))
        cost = self.machine.cost
        call = max(0.0, short - (few + 1) * step)
        self._costs(replace(cost, step=cost.step + step, call=cost.call + call))
        for _ in range(_TRIES):
            more = self._excess(lambda: self._crowd(context, crowd)) / (crowd * _CROWD)
            cost = self.machine.cost
            self._costs(replace(cost, decode_sequence=max(0.0, cost.decode_sequence + more)))

    def _costs(self, cost: CostModel) -> None:
        self.machine = replace(self.machine, cost=cost)

    def _small(self, context: int, output: int) -> Job:
        """Return a program whose calls add a different number of tokens each time.

        A workload's calls do: a CPU prepares its products anew for every new length, which a
        profile of few lengths does not see.
        """
        calls, prompt, kept = list[Call](), max(64, context // 2), 0
        for _ in range(_CALLS):
            calls.append(Call(prompt, kept, output, 0.0, "t"))
            self._sizes = (self._sizes * 5 + 3) % 64
            kept = prompt + output
            prompt = kept + 1 + self._sizes // 2
        return Job("0:small", "small", tuple(calls))

    def _crowd(self, context: int, output: int) -> list[Job]:
        return [replace(self._small(context, output), id=f"{n}:small") for n in range(_CROWD)]

    def _excess(self, draw: Callable[[], list[Job]]) -> float:
        """Seconds that a call takes longer live than simulated, the median of some tries."""
        found = []
        for _ in range(_TRIES):
            self.drawn = draw()
            self.alone = dict.fromkeys((job.id for job in self.drawn), 1.0)
            rows = (self.live("fcfs-lru"), self.simulated("fcfs-lru"))
            found.append((rows[0]["jct_mean_s"] - rows[1]["jct_mean_s"]) / _CALLS)
        self.took.clear()
        return statistics.median(found)

    @property
    def pressure(self) -> float:
        """Capacity over working set, as it came out."""
        return self.kv_tokens / (self.replay.there * statistics.fmean(j.peak for j in self.drawn))

    def _core(self, kv_tokens: int, host_tokens: int) -> EngineCore:
        config = EngineConfig(kv_tokens=kv_tokens, host_tokens=host_tokens)
        return make_engine(self._spec, self._weights, config, torch.device("cpu"))

    def live(self, policy: str) -> dict[str, float]:
        """Replay under a policy, on an engine of its own and in an event loop of its own."""
        return asyncio.run(self._live(policy))

    async def _live(self, policy: str) -> dict[str, float]:
        chosen = make_policy(policy)
        engine = ThreadEngine(self._core(self.kv_tokens, self.host_tokens if chosen.spill else 0))
        store = await asyncio.to_thread(Store, "sqlite://")
        pool = self._pool() if self.replay.environments else None
        live = Dispatcher(chosen, engine, pool, store, LocalBus(), record=False)
        live.scheduler.state.cost = self.machine.cost
        player = Player(live, self.drawn)
        began = time.monotonic()
        idle = asyncio.create_task(_leased(engine))
        try:
            await player.run()
            seconds = time.monotonic() - began
            idle.cancel()
            await live.settle()
            stats = await engine.stats()
        finally:
            idle.cancel()
            await live.close()
            if pool is not None:
                await pool.close()
            await engine.close()
            await store.close()
        self.took[policy] = [one.jct for one in player.ended]
        held = {"held_idle_block_s": await idle}
        counters = PoolCounters() if pool is None else pool.counters
        held |= self._environments(live.environments.stall, counters.idle_seconds)
        return self._figures(player.ended) | self._more(player, stats, seconds) | held

    def _pool(self) -> WarmPool:
        """Environments that take as long as the workload says, a few at a time."""
        starts = {job.env: job.env_start for job in self.drawn}

        async def make(env: Env) -> None:
            await asyncio.sleep(starts[env.image])

        return WarmPool(FakeProvider(make, starts=_STARTS), max_warm=self.replay.there)

    def _environments(self, stall: float, idle: float) -> dict[str, float]:
        return {"env_stall_s": stall / len(self.drawn), "env_idle_s": idle}

    def _more(self, player: Player, stats: EngineStats, seconds: float) -> dict[str, float]:
        hits = stats.cache.hit_tokens + stats.cache.hit_host_tokens
        return {
            "tokens_per_s": player.output / seconds,
            "steps_per_min": 60 * sum(len(job.calls) for job in self.drawn) / seconds,
            "recomputed_share": player.recomputed / max(1, player.fresh),
            "hit_share": hits / max(1, stats.cache.prompt_tokens),
            "preemptions": stats.batch.preemptions,
        }

    def simulated(self, policy: str) -> dict[str, float]:
        """Return the figures of the same programs on the same costs, in virtual time."""
        rooms = _AMPLE if self.replay.environments else None
        chosen, host = make_policy(policy), self.replay.host
        outcome = Simulation(
            self.machine, chosen, self.drawn, host, sandbox=rooms, calibrated=True
        ).run()
        return self._figures(outcome.ended)

    def _figures(self, ended: Sequence[Ended]) -> dict[str, float]:
        return programs(ended, [self.alone[one.job.id] for one in ended])


async def _leased(engine: ThreadEngine) -> float:
    """Block-seconds under lease, of conversations that wait for a tool, until it is cancelled."""
    total, at = 0.0, time.monotonic()
    try:
        while True:
            await asyncio.sleep(_SAMPLED)
            leased, now = (await engine.stats()).cache.leased_blocks, time.monotonic()
            total, at = total + leased * (now - at), now
    except asyncio.CancelledError:
        return total


def main(replay: Replay, policies: Sequence[str], json: bool, plot: Path | None = None) -> int:
    """Replay, simulate and print.

    Raises:
        ConfigError: an unknown workload or policy, or a picture that cannot be written.
    """
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
        "workload": replay.workload,
        "programs": replay.count,
        "in_flight": replay.there,
        "pressure": bench.pressure,
        "tokens_scale": replay.tokens,
        "seconds_scale": bench.seconds,
        "kv_tokens": bench.kv_tokens,
        "host_tokens": bench.host_tokens,
        "kendall_tau": kendall(*means),
        "jct_error_mean": statistics.fmean(errors),
    }
    if json:
        show.emit(about | {"live": live, "simulated": simulated})
        return 0
    _print(about, live, simulated)
    return 0


_SHOWN = {
    "jct_mean_s": ("JCT mean", "{:.2f}"),
    "jct_p50_s": ("p50", "{:.2f}"),
    "jct_p95_s": ("p95", "{:.2f}"),
    "jct_p99_s": ("p99", "{:.2f}"),
    "jct_less_gaps_mean_s": ("less gaps", "{:.2f}"),
    "admission_mean_s": ("admission", "{:.2f}"),
    "ttft_p50_s": ("TTFT p50", "{:.3f}"),
    "ttft_p99_s": ("p99", "{:.2f}"),
    "tokens_per_s": ("tokens/s", "{:.0f}"),
    "steps_per_min": ("steps/min", "{:,.0f}"),
    "recomputed_share": ("recomputed", "{:.1%}"),
    "hit_share": ("hits", "{:.0%}"),
    "slo_share": ("SLO", "{:.0%}"),
    "stretch_max": ("stretch", "{:.0f}"),
    "fairness": ("fairness", "{:.2f}"),
    "held_idle_block_s": ("held idle", "{:,.0f}"),
    "preemptions": ("preempted", "{:.0f}"),
    "env_stall_s": ("env stall", "{:.3f}"),
    "env_idle_s": ("env idle", "{:,.1f}"),
}


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
        "SLO: JCT within 1.5 times alone. Fairness: Jain's index of JCT over alone. Held idle: "
        "block-seconds under lease while tools run. Env stall: what a program waits for its "
        "environment; env idle: container-seconds ready and unused."
    )
    show.note(
        f"live against simulated: Kendall tau {about['kendall_tau']:.2f} over pairs that differ by "
        f"more than a tenth, mean error of mean JCT {about['jct_error_mean']:.0%}"
    )


def kendall(live: dict[str, float], simulated: dict[str, float]) -> float:
    """Return Kendall's tau of two rankings, over pairs that differ by more than a tenth live."""
    pairs = [
        (a, b)
        for a, b in combinations(live, 2)
        if max(live[a], live[b]) > _DIFFERENT * min(live[a], live[b])
    ]
    same = sum((live[a] < live[b]) == (simulated[a] < simulated[b]) for a, b in pairs)
    return (2 * same - len(pairs)) / len(pairs) if pairs else 1.0


__all__ = ["Bench", "kendall", "main"]
