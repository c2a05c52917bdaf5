"""Programs of the workflow benchmark, scaled to a small model and a short time."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from drawloom.runtime.sim.workload import Call, Job


@dataclass(frozen=True, slots=True)
class Replay:
    """Select and scale the programs of a replay.

    Args:
        workload: name of a workload, or a trace file.
        there: programs at a time.
        count: programs in all.
        pressure: KV capacity over working set.
        tokens: tokens of the replay for one of the workload.
        host: have host memory behind the KV cache.
        seed: seed of the draw.
        environments: tools wait for environments, for as long as these take to start.
    """

    workload: str
    there: int = 12
    count: int = 36
    pressure: float = 0.4
    tokens: float = 1 / 32
    host: bool = True
    seed: int = 0
    environments: bool = True


def scaled(jobs: Sequence[Job], tokens: float, seconds: float) -> list[Job]:
    """Return the programs with fewer tokens and shorter tools; prefixes stay shared.

    Args:
        jobs: programs of a workload.
        tokens: factor for tokens.
        seconds: factor for times.
    """
    return [_scaled(job, tokens, seconds) for job in jobs]


def _scaled(job: Job, tokens: float, seconds: float) -> Job:
    calls: list[Call] = []
    for at, call in enumerate(job.calls):
        base = job.base(at)
        most = calls[base].context if base >= 0 else 10**9
        prompt = max(2, round(call.prompt * tokens))
        reuse = min(round(call.reuse * tokens), most, prompt - 1)
        output = max(1, round(call.output * tokens))
        gap, busy = call.gap * seconds, call.busy * seconds
        calls.append(replace(call, prompt=prompt, reuse=reuse, output=output, gap=gap, busy=busy))
    shared = min(round(job.shared * tokens), calls[0].prompt - 1)
    return replace(
        job,
        calls=tuple(calls),
        shared=shared,
        arrival=job.arrival * seconds,
        env_start=job.env_start * seconds,
    )


def mean_prompt(jobs: Sequence[Job]) -> float:
    """Return the mean prompt of all calls, in tokens."""
    return statistics.fmean(call.prompt for job in jobs for call in job.calls)


def mean_gaps(jobs: Sequence[Job]) -> float:
    """Return the mean time between calls of a program, in seconds."""
    return statistics.fmean(job.gaps for job in jobs)


__all__ = ["Replay", "mean_gaps", "mean_prompt", "scaled"]
