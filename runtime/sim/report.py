"""Figures of simulated and live runs."""

import statistics
from collections.abc import Sequence

from drawloom.runtime.sim.presets import Machine
from drawloom.runtime.sim.sim_program import Ended, Outcome
from drawloom.runtime.sim.workload import Job


def isolated(machine: Machine, jobs: Sequence[Job]) -> dict[str, float]:
    """Return the seconds that each program takes on the idle machine, by the program's id."""
    cost, found = machine.cost, {}
    for job in jobs:
        seconds = []
        for at, call in enumerate(job.calls):
            base = job.base(at)
            cached = min(call.reuse, job.calls[base].context if base >= 0 else 0)
            new = call.prompt - cached
            steps = max(1.0, new / machine.batch_tokens)
            prefill = cost.prefill * new + cost.prefill_cached * new * (cached + new / 2)
            prefill += steps * cost.step
            decode = call.output * cost.decode(1, call.prompt + call.output // 2)
            seconds.append(cost.call + prefill + decode)
        found[job.id] = job.longest(seconds)
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie; 0 without any."""
    found = sorted(values)
    return found[min(len(found) - 1, int(share * len(found)))] if found else 0.0


def programs(ended: Sequence[Ended], isolated_seconds: Sequence[float]) -> dict[str, float]:
    """Return the figures of the programs of one policy, live or simulated.

    Fairness is Jain's index of the stretches: 1 if all were slowed alike, 1/n if one alone was.

    Args:
        ended: programs.
        isolated_seconds: of each of them.
    """
    jct = [e.jct for e in ended]
    stretch = [j / max(1e-9, seconds) for j, seconds in zip(jct, isolated_seconds, strict=True)]
    waits = [w for e in ended for w in e.waits]
    return {
        "programs": len(ended),
        "jct_mean_s": statistics.fmean(jct),
        "jct_p50_s": quantile(jct, 0.5),
        "jct_p95_s": quantile(jct, 0.95),
        "jct_p99_s": quantile(jct, 0.99),
        "jct_less_gaps_mean_s": statistics.fmean(e.jct - e.job.gaps for e in ended),
        "admission_mean_s": statistics.fmean(e.admission for e in ended),
        "ttft_p50_s": quantile(waits, 0.5),
        "ttft_p99_s": quantile(waits, 0.99),
        "slo_share": sum(s <= 1.5 for s in stretch) / len(stretch),
        "stretch_max": max(stretch),
        "fairness": sum(stretch) ** 2 / (len(stretch) * sum(s * s for s in stretch)),
    }


def figures(outcomes: Sequence[Outcome], isolated_seconds: dict[str, float]) -> dict[str, float]:
    """Return the figures of one policy over several seeds; tail figures pool them.

    Args:
        outcomes: one of each seed.
        isolated_seconds: of each program, by its id in the workload.
    """
    ended: list[Ended] = [e for o in outcomes for e in o.ended]
    fresh = sum(o.fresh for o in outcomes)
    prompts = sum(o.counters.prompt for o in outcomes)
    seconds = sum(o.seconds for o in outcomes)
    groups = sorted({e.job.group for e in ended if e.job.group})
    return {
        **programs(ended, [isolated_seconds[e.job.id.split(":", 1)[1]] for e in ended]),
        "recomputed_share": sum(o.recomputed for o in outcomes) / max(1, fresh),
        "hit_share": sum(o.counters.hit for o in outcomes) / max(1, prompts),
        "tokens_per_s": sum(o.counters.output for o in outcomes) / seconds,
        "steps_per_min": 60 * sum(len(e.job.calls) for e in ended) / seconds,
        "busy_share": sum(o.counters.busy / o.engines for o in outcomes) / seconds,
        "moves": sum(o.moves for o in outcomes) / max(1, len(ended)),
        "moved_tokens": sum(o.moved for o in outcomes) / max(1, len(ended)),
        "preempted": sum(o.counters.preempted for o in outcomes) / max(1, len(ended)),
        "events": sum(o.events for o in outcomes),
        **{f"jct_mean_s, {name}": statistics.fmean(_jct(ended, name)) for name in groups},
        **{f"jct_max_s, {name}": max(_jct(ended, name)) for name in groups},
    }


def _jct(ended: Sequence[Ended], group: str) -> list[float]:
    return [e.jct for e in ended if e.job.group == group]


__all__ = ["figures", "isolated", "programs", "quantile"]
