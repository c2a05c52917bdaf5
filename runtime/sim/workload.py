"""Programs of workloads: recorded traces, and arrivals drawn from them."""

import gzip
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drawloom.errors import ConfigError

_LONGEST = 128_000


@dataclass(frozen=True, slots=True)
class Call:
    """Describe one LLM call of a program.

    By default it goes on from the call before it, in the same conversation.

    Attributes:
        prompt: tokens.
        reuse: the first so many of them were also in the context that it goes on from.
        output: tokens.
        gap: seconds from its end to the next call.
        tool: that runs in the gap.
        site: its call site in the agent.
        chat: number of its conversation.
        after: numbers of the calls that must have ended before; None is the one before.
        base: number of the call whose context it begins with; -1 is the program's prefix, None the
            one before.
        left: calls still to come after it, as the agent's declared graph would say.
        busy: seconds of the gap in which a tool runs in the program's environment.
    """

    prompt: int
    reuse: int
    output: int
    gap: float
    tool: str
    site: str = "llm"
    chat: int = 0
    after: tuple[int, ...] | None = None
    base: int | None = None
    left: float | None = None
    busy: float = 0.0

    @property
    def context(self) -> int:
        """Return the tokens of the conversation after it."""
        return self.prompt + self.output


@dataclass(frozen=True, slots=True)
class Job:
    """Describe a program of a workload.

    Attributes:
        id: its name.
        agent: whose program it is.
        calls: its LLM calls.
        prefix: name of what its first prompt begins with; equal names are equal tokens.
        shared: tokens of the prefix.
        arrival: seconds.
        tenant: to whom it belongs.
        expect: calls that its declared graph foresees before anything has run.
        env: image that its tools run in; empty if they need none.
        env_start: seconds that an environment of it takes to start.
        image_gb: size of the image.
        max_tokens: the most output that it asks for in a call: all that is known beforehand.
        group: of programs that are counted together.
    """

    id: str
    agent: str
    calls: tuple[Call, ...]
    prefix: str = ""
    shared: int = 0
    arrival: float = 0.0
    tenant: str = "default"
    expect: float | None = None
    env: str = ""
    env_start: float = 0.0
    image_gb: float = 0.0
    max_tokens: int = 16_384
    group: str = ""

    def after(self, at: int) -> tuple[int, ...]:
        """Return the calls that must have ended before call `at`."""
        given = self.calls[at].after
        return given if given is not None else (at - 1,) if at else ()

    def base(self, at: int) -> int:
        """Return the call whose context call `at` begins with; -1 for the program's prefix."""
        given = self.calls[at].base
        return at - 1 if given is None else given

    @property
    def peak(self) -> int:
        """Return the most tokens of its conversations together, if all are there at the end.

        What one begins with of another is counted once.
        """
        largest: dict[int, int] = {}
        for at, call in enumerate(self.calls):
            base = self.base(at)
            other = call.chat not in largest and base >= 0 and self.calls[base].chat != call.chat
            begin = call.reuse if other else 0
            largest[call.chat] = max(largest.get(call.chat, 0), call.context - begin)
        return sum(largest.values())

    @property
    def gaps(self) -> float:
        """Return the seconds of gaps on the longest way through its calls."""
        return self.longest([0.0] * len(self.calls))

    def longest(self, seconds: Sequence[float]) -> float:
        """Return the seconds from the first call's start to the last one's end.

        Args:
            seconds: that each call takes.
        """
        ends: list[float] = []
        for at, took in enumerate(seconds):
            ready = max((ends[n] + self.calls[n].gap for n in self.after(at)), default=0.0)
            ends.append(ready + took)
        return max(ends)


def read(path: Path, waits: bool = False) -> list[Job]:
    """Read the programs of a trace file.

    Contexts are clipped at 128,000 tokens, and sessions cut where a person was asked, unless
    `waits` is set.

    Raises:
        ConfigError: the file is no trace file.
    """
    try:
        with gzip.open(path, "rt") as lines:
            rows = [json.loads(line) for line in lines]
        return [job for row in rows for job in _jobs(row, waits)]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is no trace file: {error}") from None


def _jobs(row: dict[str, object], waits: bool) -> Iterator[Job]:
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
        asks = step["end"] == "user" and waits and step is not steps[-1]
        if calls and (full or (step["end"] != "tool" and not asks)):
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
    name = "human" if step["end"] == "user" else name
    numbers = [int(str(step[key])) for key in ("in", "reuse", "out")]
    gap = float(str(step["gap"] or 0.0))
    busy = min(gap, sum(float(tool["s"]) for tool in tools))
    return Call(numbers[0], numbers[1], max(1, numbers[2]), gap, name, busy=busy)


def _job(
    row: dict[str, object], agent: str, part: int, calls: list[Call], prefix: dict[str, object]
) -> Job:
    first = calls[0]
    calls = [replace(first, reuse=0), *calls[1:]]  # nothing before it: its session was cut here
    shared = min(int(str(prefix["tokens"])), first.prompt)
    start, image = float(str(row.get("env_start_s") or 0)), float(str(row.get("image_gb") or 0))
    return Job(
        id=f"{row['id']}/{part}",
        agent=agent,
        calls=tuple(calls),
        prefix=str(prefix["id"]),
        shared=shared,
        env=str(row["id"]) if start else "",
        env_start=start,
        image_gb=image,
    )


@dataclass(frozen=True, slots=True)
class Mix:
    """Draw programs from others, with Poisson arrivals.

    Attributes:
        jobs: to draw from.
        in_flight: programs that are meant to be there at a time: they arrive at this over the mean
            of their isolated seconds.
        count: programs to draw.
        burst: programs that arrive at a time.
        shares: how often each of `jobs` is drawn; empty is equally often.
    """

    jobs: tuple[Job, ...]
    in_flight: int
    count: int
    burst: int = 1
    shares: tuple[float, ...] = ()

    def draw(self, seed: int, isolated: float) -> list[Job]:
        """Draw the programs of a seed.

        Args:
            seed: of the random numbers.
            isolated: mean seconds that a program takes on an idle machine.
        """
        rng, now = random.Random(seed), 0.0
        drawn = []
        for number in range(self.count):
            if number % self.burst == 0:
                now += rng.expovariate(self.in_flight / isolated / self.burst)
            job = rng.choices(self.jobs, self.shares)[0] if self.shares else rng.choice(self.jobs)
            drawn.append(replace(job, id=f"{number}:{job.id}", arrival=now))
        return drawn


def in_flight(
    jobs: Iterable[Job], kv_tokens: int, ratio: float, shares: Sequence[float] = ()
) -> int:
    """Return how many programs have `kv_tokens` / `ratio` tokens at their largest."""
    peaks = [job.peak for job in jobs]
    weights = shares or [1.0] * len(peaks)
    mean = sum(p * w for p, w in zip(peaks, weights, strict=True)) / sum(weights)
    return max(1, round(kv_tokens / ratio / mean))


__all__ = ["Call", "Job", "Mix", "in_flight", "read"]
