"""Workloads with arrivals of their own, by name: agents beside real servers, and stress cases.

`agents` are clients of real servers, draw for draw; the answers of `agents-past` are
not sent back as they were sampled, so that their KV is of no use to the next call. The others run
on a machine with memory for 200,000 tokens: `human` (forty programs wait an hour for a person, then
forty others arrive), `human2` (15 % do), `jump` (tools become a hundred times slower half-way),
`liar` (a quarter of the programs declares one call and makes forty) and `honest` (the same,
declaring forty), `cold` (a new agent of ten times the size), `fork` (400 branches among small
programs), `flood` (a tenant submits 200 programs at once).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from drawloom.runtime.sim.workload import Call, Job

_SMALL, _HOUR = "h200-8b-small", 3600.0
_SYSTEM, _TASK, _TEMPLATE, _OUTPUT, _TURNS = 206, 154, 8, 24, 8


@dataclass(frozen=True, slots=True)
class FixedWorkload:
    """Describe a workload.

    Attributes:
        make: returns its programs, given a seed and a number of programs.
        machine: on which it runs.
        knows: what the scheduler knows of agents (`Simulation`).
        count: programs by default, where the number can be chosen.
    """

    make: Callable[[int, int], list[Job]]
    machine: str = _SMALL
    knows: str = "learned"
    count: int = 0


# --- agents beside real servers ---------------------------------------------------------------


def _agents(seed: int, count: int, past: bool = False) -> list[Job]:
    return [_agent(number, random.Random(number + 1_000 * seed), past) for number in range(count)]


def _agent(number: int, rng: random.Random, past: bool) -> Job:
    _words(rng, 150)
    steps = _TURNS + rng.randint(-_TURNS // 2, _TURNS // 2)
    calls, prompt, reuse = list[Call](), _SYSTEM + _TASK + 2 * _TEMPLATE, 0
    for _ in range(steps):
        gap = rng.lognormvariate(-0.3, 0.9)
        words = rng.randint(80, 260)
        _words(rng, words)
        calls.append(Call(prompt, reuse, _OUTPUT, gap, "client"))
        reuse = prompt if past else prompt + _OUTPUT
        prompt += _OUTPUT + words + 2 * _TEMPLATE
    shared = _SYSTEM + _TEMPLATE
    return Job(f"p{number}", "agent", tuple(calls), "agents", shared, max_tokens=_OUTPUT)


def _words(rng: random.Random, count: int) -> None:
    """Advance the random numbers as the client does, so that later draws are the same."""
    for _ in range(count):
        rng.choice(range(24))


# --- what breaks schedulers -------------------------------------------------------------------


def _chain(
    name: str,
    calls: int,
    rng: random.Random,
    arrival: float,
    *,
    agent: str = "a",
    gap: float = 1.0,
    ask: int | None = None,
    delta: int = 800,
    group: str = "",
) -> Job:
    """Make a program of calls that each add `delta` tokens; at call `ask` it waits an hour."""
    made, prompt, reuse = list[Call](), 4_000, 0
    for at in range(calls):
        seconds, tool = gap * rng.expovariate(1), "bash"
        if at == ask:
            seconds, tool = _HOUR, "ask_human"
        made.append(Call(prompt, reuse, 200, seconds, tool))
        reuse = prompt + 200
        prompt = reuse + delta
    return Job(name, agent, tuple(made), arrival=arrival, group=group)


def _human(seed: int, count: int) -> list[Job]:
    rng = random.Random(seed)
    first = [
        _chain(f"h{n}", 20, rng, 2.0 * n, agent="human", ask=10, group="asking") for n in range(40)
    ]
    return first + [
        _chain(f"n{n}", 20, rng, 300 + 5.0 * n, agent="plain", group="plain") for n in range(40)
    ]


def _human2(seed: int, count: int) -> list[Job]:
    rng = random.Random(seed)
    jobs, now = list[Job](), 0.0
    for n in range(200):
        now += rng.expovariate(1 / 12)
        asks = rng.random() < 0.15
        group = "asking" if asks else "plain"
        jobs.append(_chain(f"p{n}", 20, rng, now, ask=10 if asks else None, group=group))
    return jobs


def _jump(seed: int, count: int) -> list[Job]:
    rng = random.Random(seed)
    jobs, now = list[Job](), 0.0
    for n in range(160):
        now += rng.expovariate(1 / 8)
        late = n >= 80
        group = "after" if late else "before"
        jobs.append(_chain(f"p{n}", 20, rng, now, gap=100.0 if late else 1.0, group=group))
    return jobs


def _liar(seed: int, count: int, says: float = 1.0) -> list[Job]:
    rng = random.Random(seed)
    jobs, now = list[Job](), 0.0
    for n in range(150):
        now += rng.expovariate(1 / 6)
        calls, lies = rng.choice((5, 10, 20, 40)), n % 4 == 0
        calls = 40 if lies else calls
        job = _chain(f"p{n}", calls, rng, now, group="liars" if lies else "others")
        jobs.append(replace(job, expect=says if lies else float(calls)))
    return jobs


def _cold(seed: int, count: int) -> list[Job]:
    rng = random.Random(seed)
    jobs, now = list[Job](), 0.0
    for n in range(200):
        now += rng.expovariate(1 / 7)
        if n >= 100 and n % 3 == 0:
            jobs.append(_chain(f"n{n}", 60, rng, now, agent="new", delta=1_500, group="new"))
        else:
            group = "known" if n <= 100 else "known beside new"
            jobs.append(_chain(f"p{n}", 12, rng, now, group=group))
    return jobs


def _fork(seed: int, count: int) -> list[Job]:
    rng = random.Random(seed)
    jobs = [_chain(f"p{n}", 20, rng, 5.0 * (n + 1), group="plain") for n in range(60)]
    calls = [Call(6_000, 0, 200, 1.0, "plan")]
    calls += [
        Call(6_400, 6_200, 1_500, 1.0, "w", chat=n + 1, after=(0,), base=0) for n in range(400)
    ]
    return [*jobs, Job("f", "forker", tuple(calls), arrival=100.0, group="forker")]


def _flood(seed: int, count: int) -> list[Job]:
    rng = random.Random(seed)
    jobs = [
        replace(_chain(f"a{n}", 20, rng, 0.0, group="flooding"), tenant="A") for n in range(200)
    ]
    return jobs + [
        replace(_chain(f"b{n}", 20, rng, 60.0 * (n + 1), group="other"), tenant="B")
        for n in range(20)
    ]


FIXED = {
    "agents": FixedWorkload(_agents, "cpu-135m", "http", 16),
    "agents-past": FixedWorkload(
        lambda seed, count: _agents(seed, count, True), "cpu-135m", "http", 16
    ),
    "human": FixedWorkload(_human),
    "human2": FixedWorkload(_human2),
    "jump": FixedWorkload(_jump),
    "liar": FixedWorkload(_liar, knows="declared"),
    "honest": FixedWorkload(lambda seed, count: _liar(seed, count, 40.0), knows="declared"),
    "cold": FixedWorkload(_cold),
    "fork": FixedWorkload(_fork),
    "flood": FixedWorkload(_flood),
}


def draw_fixed(name: str, count: int, seed: int) -> list[Job]:
    """Return the programs of a fixed workload, with ids that differ between seeds."""
    kind = FIXED[name]
    jobs = kind.make(seed, count or kind.count)
    return [replace(job, id=f"{n}:{job.id}/{seed}") for n, job in enumerate(jobs)]


__all__ = ["FIXED", "FixedWorkload", "draw_fixed"]
