"""Workloads made up from published statistics (research/scheduling.md §6), by name.

`swe`: coding agents in containers; contexts grow, now and then one is compacted. `web`: browser
agents that send each page anew, so only the instructions are shared. `function`: many small calls
of functions. `rl`: groups of 16 rollouts that begin with the same prompt.
"""

import math
import random
from collections.abc import Callable

from drawloom.errors import ConfigError
from drawloom.runtime.sim.workload import Call, Job

_TOOLS = (  # name, share, log-normal mu and sigma of its seconds (§6.2)
    ("python3", 0.14, 0.36, 1.28),
    ("pytest", 0.06, 0.50, 1.04),
    ("git", 0.06, -1.08, 1.59),
    ("source", 0.10, 0.45, 1.80),
    ("read", 0.30, -3.12, 0.95),
    ("edit", 0.20, -3.06, 0.43),
    ("grep", 0.14, -3.18, 0.47),
)
_GROUP = 16
_LONGEST = 120_000


def _swe(number: int, rng: random.Random) -> Job:
    shared = 8_000
    calls, prompt, reuse = [], shared + rng.randint(1_000, 6_000), 0
    for _ in range(max(2, min(150, round(rng.lognormvariate(math.log(30), 0.75))))):
        if prompt > _LONGEST:
            break
        output = max(8, min(4_000, round(rng.lognormvariate(math.log(150), 1.08))))
        tool, gap = _tool(rng)
        calls.append(Call(prompt, reuse, output, gap, tool))
        context = prompt + output
        if rng.random() < 0.007 and context > 40_000:  # compacted: its beginning stays
            prompt, reuse = context // 4, min(shared, context // 4)
        else:
            new = min(20_000, round(rng.lognormvariate(math.log(463), 1.5)))
            prompt, reuse = context + max(16, new), context
    return Job(f"swe-{number}", "swe", tuple(calls), "swe", shared)


def _tool(rng: random.Random) -> tuple[str, float]:
    name, _, mu, sigma = rng.choices(_TOOLS, [t[1] for t in _TOOLS])[0]
    slow = rng.random() < 0.01
    return name, 120.0 if slow and mu > -2 else min(120.0, rng.lognormvariate(mu, sigma))


def _web(number: int, rng: random.Random) -> Job:
    static, calls = 1_100, []
    for step in range(max(2, round(rng.gauss(18, 5)))):
        gap = rng.uniform(10, 45) if rng.random() < 0.01 else rng.lognormvariate(-0.16, 1.0)
        prompt = static + rng.randint(1_000, 4_000)
        calls.append(Call(prompt, static if step else 0, rng.randint(50, 200), gap, "browse"))
    return Job(f"web-{number}", "web", tuple(calls), "web", static)


def _function(number: int, rng: random.Random) -> Job:
    shared, calls = rng.choice([4_400, 5_400, 6_900]), []
    prompt, reuse = shared + 45, 0
    for _ in range(max(2, min(16, round(rng.gauss(9.4, 2.5))))):
        output = max(4, round(rng.expovariate(1 / 34)))
        calls.append(Call(prompt, reuse, output, 0.001, "function"))
        prompt, reuse = prompt + output + rng.randint(50, 200), prompt + output
    return Job(f"function-{number}", "function", tuple(calls), f"function-{shared}", shared)


def _rl(number: int, rng: random.Random) -> Job:
    group = number // _GROUP
    first = 6_000 + 37 * (group * 7_919 % 101)
    job = _swe(number, rng)
    shift = first - job.calls[0].prompt
    calls = [
        Call(c.prompt + shift, c.reuse + shift if at else 0, c.output, c.gap, c.tool)
        for at, c in enumerate(job.calls)
        if c.prompt + shift > first // 2
    ]
    plain = tuple(Call(c.prompt, min(c.reuse, c.prompt), c.output, c.gap, c.tool) for c in calls)
    return Job(f"rl-{number}", "rl", plain, f"rl-{group}", first)


_KINDS: dict[str, Callable[[int, random.Random], Job]] = {
    "swe": _swe,
    "web": _web,
    "function": _function,
    "rl": _rl,
}


def generate(kind: str, count: int = 128, seed: int = 0) -> list[Job]:
    """`count` programs of a kind. Raises `ConfigError` with the known kinds."""
    if kind not in _KINDS:
        raise ConfigError(f"workload {kind!r}: choose {', '.join(_KINDS)}, or a trace file")
    rng = random.Random(seed)
    return [_KINDS[kind](number, rng) for number in range(count)]


__all__ = ["generate"]
