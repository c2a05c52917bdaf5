"""Ten tenants on one engine: SAGA's scenario (arXiv 2605.00528), rates restated.

Three tenants run tasks of 100 steps at 16 a minute each, four of 30 at 8, three of 10 at 4;
prompts, outputs, observations and tools are drawn as in its artifact's generator. The rates are
scaled together to a share of the saturation rate, which is measured.
"""

import math
import random
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.sim.presets import Machine, machine
from drawloom.runtime.sim.report import quantile
from drawloom.runtime.sim.sim_program import Ended
from drawloom.runtime.sim.simulation import Simulation
from drawloom.runtime.sim.workload import Call, Job

CLASSES = {"heavy": (3, 100, 16.0), "medium": (4, 30, 8.0), "light": (3, 10, 4.0)}
_TOOLS = (  # share, p50 and p95 seconds
    (0.45, 0.180, 2.4),
    (0.40, 0.045, 0.32),
    (0.10, 0.850, 4.5),
    (0.05, 0.120, 0.89),
)
_SLO = 1.5
_KNEE = 0.95
_AT_A_TIME = (2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48)


@dataclass(frozen=True, slots=True)
class Saturation:
    """Describe the engine at its saturation point.

    Attributes:
        rate: tasks that it finishes in a second.
        programs: at a time.
        batch: sequences that a step decodes.
        context: mean tokens of each.
    """

    rate: float
    programs: int
    batch: float
    context: float


def _task(kind: str, tenant: str, number: int, rng: random.Random) -> Job:
    calls, prompt, reuse = [], rng.randint(2_000, 4_000), 0
    for _ in range(CLASSES[kind][1]):
        output = rng.randint(100, 500)
        _, p50, p95 = rng.choices(_TOOLS, [tool[0] for tool in _TOOLS])[0]
        gap = rng.lognormvariate(math.log(p50), math.log(p95 / p50) / 1.645)
        calls.append(Call(prompt, reuse, output, gap, f"tool-{p50}"))
        reuse = prompt + output
        prompt = reuse + max(16, round(rng.gammavariate(2, 175)))
    return Job(f"{tenant}-{number}", kind, tuple(calls), tenant=tenant)


def arrivals(rate: float, seconds: float, seed: int) -> list[Job]:
    """Draw the tasks of all tenants, with Poisson arrivals.

    Args:
        rate: tasks a second in all.
        seconds: for which they arrive.
        seed: of the random numbers.
    """
    rng = random.Random(seed)
    total = sum(count * each for count, _, each in CLASSES.values())
    jobs: list[Job] = []
    for kind, (count, _, each) in CLASSES.items():
        for index in range(count):
            tenant, now = f"{kind}-{index}", 0.0
            while (now := now + rng.expovariate(rate * each / total)) < seconds:
                jobs.append(replace(_task(kind, tenant, len(jobs), rng), arrival=now))
    return sorted(jobs, key=lambda job: job.arrival)


def saturation(engine: Machine, seed: int = 0, tasks: int = 300) -> Saturation:
    """Measure the saturation point of an engine with its own memory.

    A backlog of the mix is run with several numbers of programs at a time; the point is the fewest
    that finish all but a twentieth of what the best number finishes.
    """
    jobs = [replace(job, arrival=0.0) for job in arrivals(1.0, tasks, seed)]
    with ProcessPoolExecutor() as pool:
        found = list(
            pool.map(_saturated, [engine] * len(_AT_A_TIME), [jobs] * len(_AT_A_TIME), _AT_A_TIME)
        )
    best = max(one.rate for one in found)
    return next(one for one in found if one.rate >= _KNEE * best)


def _saturated(engine: Machine, jobs: list[Job], at_a_time: int) -> Saturation:
    outcome = Simulation(engine, make_policy(f"static-cap:{at_a_time}"), jobs, True).run()
    ended = sorted(one.ended for one in outcome.ended)
    early, late = len(ended) // 4, 3 * len(ended) // 4  # while it neither fills nor runs dry
    rate = (late - early) / (ended[late] - ended[early])
    counters = outcome.counters
    batch = counters.sequences / counters.busy
    return Saturation(rate, at_a_time, batch, counters.context / max(1e-9, counters.sequences))


def isolated(engine: Machine, jobs: Sequence[Job], full: Saturation) -> dict[str, float]:
    """Return each task's seconds with nothing queued, in a batch as large as at saturation."""
    cost, step = (
        engine.cost,
        engine.cost.decode(round(full.batch), round(full.batch * full.context)),
    )
    found = {}
    for job in jobs:
        seconds = []
        for call in job.calls:
            new = call.prompt - call.reuse
            prefill = cost.prefill * new + cost.prefill_cached * new * (call.reuse + new / 2)
            prefill += max(1.0, new / engine.batch_tokens) * step
            seconds.append(prefill + call.output * step)
        found[job.id] = job.longest(seconds)
    return found


def _run(policy: str, engine: Machine, jobs: list[Job]) -> list[Ended]:
    return Simulation(engine, make_policy(policy), jobs, True).run().ended


def compare_tenants(
    policies: Sequence[str], name: str, load: float, minutes: float, seeds: int
) -> dict[str, dict[str, float]]:
    """Return each policy's tasks within the SLO, by class and in all, and their stretches.

    Args:
        policies: names.
        name: of the machine.
        load: share of the saturation rate.
        minutes: for which tasks arrive.
        seeds: how many.

    Raises:
        ConfigError: a policy or machine is not known.
    """
    engine = machine(name)
    for policy in policies:
        make_policy(policy)
    full = saturation(engine)
    drawn = [arrivals(load * full.rate, 60 * minutes, seed) for seed in range(seeds)]
    found: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor() as pool:
        runs = {p: [pool.submit(_run, p, engine, jobs) for jobs in drawn] for p in policies}
        for policy, several in runs.items():
            outcomes = [run.result() for run in several]
            found[policy] = _row(list(zip(outcomes, drawn, strict=True)), engine, full)
    return found


def _row(
    runs: Sequence[tuple[Sequence[Ended], Sequence[Job]]], engine: Machine, full: Saturation
) -> dict[str, float]:
    stretches: dict[str, list[float]] = {kind: [] for kind in CLASSES}
    for ended, jobs in runs:
        seconds = isolated(engine, jobs, full)
        for one in ended:
            stretches[one.job.agent].append(one.jct / seconds[one.job.id])
    everything = [s for several in stretches.values() for s in several]
    row = {f"slo_{kind}": _share(several) for kind, several in stretches.items()}
    return row | {
        "slo": _share(everything),
        "stretch_p99": quantile(everything, 0.99),
        "stretch_mean": statistics.fmean(everything),
        "tasks": len(everything),
        "saturation_per_min": 60 * full.rate,
        "saturation_batch": full.batch,
    }


def _share(stretches: Sequence[float]) -> float:
    return sum(s <= _SLO for s in stretches) / max(1, len(stretches))


__all__ = ["CLASSES", "Saturation", "arrivals", "compare_tenants", "isolated", "saturation"]
