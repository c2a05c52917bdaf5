"""What simulated programs do: recorded traces, and arrivals drawn from them."""

import gzip
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from drawloom.errors import ConfigError

_LONGEST = 128_000


@dataclass(frozen=True, slots=True)
class Call:
    """One LLM call: `prompt` tokens, the first `reuse` of which were also in the context of the
    call before it; `output` tokens; then `gap` seconds with `tool` until the next call."""

    prompt: int
    reuse: int
    output: int
    gap: float
    tool: str

    @property
    def context(self) -> int:
        return self.prompt + self.output


@dataclass(frozen=True, slots=True)
class Job:
    """A program of a workload. `prefix` names what its first prompt begins with, `shared` tokens
    of it; equal names are equal tokens. `arrival` in seconds."""

    id: str
    agent: str
    calls: tuple[Call, ...]
    prefix: str = ""
    shared: int = 0
    arrival: float = 0.0
    tenant: str = "default"

    @property
    def peak(self) -> int:
        return max(call.context for call in self.calls)

    @property
    def gaps(self) -> float:
        return sum(call.gap for call in self.calls[:-1])


def read(path: Path) -> list[Job]:
    """The programs of a trace file (shared/traces/README.md): contexts clipped at 128,000 tokens,
    sessions cut where a human was asked. Raises `ConfigError`."""
    try:
        with gzip.open(path, "rt") as lines:
            rows = [json.loads(line) for line in lines]
        return [job for row in rows for job in _jobs(row)]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is no trace file: {error}") from None


def _jobs(row: dict[str, object]) -> Iterator[Job]:
    steps = row["steps"]
    prefix = row.get("shared_prefix") or {"id": "", "tokens": 0}
    assert isinstance(steps, list) and isinstance(prefix, dict)
    agent = f"{row['class']}-{row['model']}" if row.get("model") else str(row["class"])
    calls: list[Call] = []
    part = 0
    for step in steps:
        call = _call(step)
        full = call.context > _LONGEST
        if not full:
            calls.append(call)
        if calls and (full or step["end"] != "tool"):
            yield _job(row, agent, part, calls, prefix)
            calls, part = [], part + 1
        if full:
            return
    if calls:
        yield _job(row, agent, part, calls, prefix)


def _call(step: dict[str, object]) -> Call:
    tools = step.get("tools") or []
    assert isinstance(tools, list)
    name = "+".join(sorted({str(tool["name"]) for tool in tools})) or "client"
    numbers = [int(str(step[key])) for key in ("in", "reuse", "out")]
    return Call(numbers[0], numbers[1], max(1, numbers[2]), float(str(step["gap"] or 0.0)), name)


def _job(
    row: dict[str, object], agent: str, part: int, calls: list[Call], prefix: dict[str, object]
) -> Job:
    first = calls[0]
    calls = [replace(first, reuse=0), *calls[1:]]  # nothing before it: its session was cut here
    shared = min(int(str(prefix["tokens"])), first.prompt)
    return Job(f"{row['id']}/{part}", agent, tuple(calls), str(prefix["id"]), shared)


@dataclass(frozen=True, slots=True)
class Mix:
    """Programs drawn from others, with Poisson arrivals.

    `in_flight` programs are meant to be there at a time: they arrive at `in_flight` over the mean
    of `isolated`, the seconds that one takes alone.
    """

    jobs: tuple[Job, ...]
    in_flight: int
    count: int

    def draw(self, seed: int, isolated: float) -> list[Job]:
        rng, now = random.Random(seed), 0.0
        drawn = []
        for number in range(self.count):
            now += rng.expovariate(self.in_flight / isolated)
            job = rng.choice(self.jobs)
            drawn.append(replace(job, id=f"{number}:{job.id}", arrival=now))
        return drawn


def in_flight(jobs: Iterable[Job], kv_tokens: int, ratio: float) -> int:
    """How many programs have `kv_tokens` / `ratio` tokens at their largest."""
    peaks = [job.peak for job in jobs]
    return max(1, round(kv_tokens / ratio / (sum(peaks) / len(peaks))))


__all__ = ["Call", "Job", "Mix", "in_flight", "read"]
