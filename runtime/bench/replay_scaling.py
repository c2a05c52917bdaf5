"""What `drawloom bench workflow` replays, scaled to a small model and a short time."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from drawloom.runtime.sim.workload import Call, Job


@dataclass(frozen=True, slots=True)
class Replay:
    """What is replayed: `there` programs at a time, `count` in all, at `pressure`; each token of
    the workload is `tokens`. With `environments`, tools wait for theirs where the workload says
    what these take to start."""

    workload: str
    there: int = 12
    count: int = 36
    pressure: float = 0.4
    tokens: float = 1 / 32
    host: bool = True
    seed: int = 0
    environments: bool = True


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
        gap, busy = call.gap * seconds, call.busy * seconds
        calls.append(replace(call, prompt=prompt, reuse=reuse, output=output, gap=gap, busy=busy))
    shared = min(round(job.shared * tokens), calls[0].prompt - 1)
    return replace(
        job, calls=tuple(calls), shared=shared, arrival=job.arrival * seconds,
        env_start=job.env_start * seconds,
    )  # fmt: skip


def mean_prompt(jobs: Sequence[Job]) -> float:
    return statistics.fmean(call.prompt for job in jobs for call in job.calls)


def mean_gaps(jobs: Sequence[Job]) -> float:
    return statistics.fmean(job.gaps for job in jobs)


__all__ = ["Replay", "mean_gaps", "mean_prompt", "scaled"]
