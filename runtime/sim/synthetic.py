"""Workloads made up from published statistics, by name.

`swe`: coding agents in containers; contexts grow, now and then one is compacted. `chats`: four
short chats with a person to one such agent. `web`: browser agents that send each page anew, so
only the instructions are shared. `function`: many small calls of functions. `rl`: groups of 16
rollouts that begin with the same prompt. `planner`, `map-reduce` and `best-of-n` have several
conversations a program, and graphs that could be declared; `graphs` is a third of each.
"""

import math
import random
from collections.abc import Callable
from dataclasses import replace

from drawloom.errors import ConfigError
from drawloom.runtime.sim.workload import Call, Job

_TOOLS = (  # name, share, log-normal mu and sigma of its seconds
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


def _chats(number: int, rng: random.Random) -> Job:
    """Draw a chat with a person who reads and types between turns; every fifth is an agent."""
    if number % 5 == 0:
        return replace(_swe(number, rng), group="agents")
    shared, calls = 300, []
    prompt, reuse = shared + rng.randint(30, 600), 0
    for _ in range(rng.randint(1, 8)):
        output = max(16, min(1_200, round(rng.lognormvariate(5.3, 0.7))))
        calls.append(Call(prompt, reuse, output, rng.lognormvariate(3.0, 0.8), "human"))
        reuse = prompt + output
        prompt = reuse + max(8, round(rng.lognormvariate(4.0, 0.8)))
    return Job(f"chat-{number}", "chat", tuple(calls), "chat", shared, group="chats")


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


# --- several conversations a program: what a declared graph foresees --------------------------


def _attempt(
    rng: random.Random, chat: int, base: int, begin: int, at: int, mean: float
) -> list[Call]:
    """Draw a branch of tool calls that goes on from call `base`, numbered from `at`."""
    calls: list[Call] = []
    prompt, reuse = begin + rng.randint(100, 400), begin
    for step in range(max(1, min(40, round(rng.lognormvariate(math.log(mean) - 0.18, 0.6))))):
        output = max(8, min(1_500, round(rng.lognormvariate(math.log(150), 0.9))))
        tool, gap = _tool(rng)
        first = {"after": (base,), "base": base} if not step else {"after": (at + step - 1,)}
        calls.append(Call(prompt, reuse, output, gap, tool, site="work", chat=chat, **first))
        context = prompt + output
        prompt, reuse = context + max(16, min(8_000, round(rng.lognormvariate(6.1, 1.2)))), context
    return calls


def _join(calls: list[Call], ends: list[int], base: int, site: str, more: int) -> Call:
    """Draw the call that waits for all branches and goes on from call `base`."""
    context = calls[base].context
    return Call(context + more, context, 500, 0.0, "", site=site, after=tuple(ends), base=base)


def _branches(rng: random.Random, calls: list[Call], width: int, mean: float) -> list[int]:
    """Append `width` branches from the first call; return the numbers of their last calls."""
    ends = []
    for chat in range(1, width + 1):
        calls += _attempt(rng, chat, 0, calls[0].context, len(calls), mean)
        ends.append(len(calls) - 1)
    return ends


_WIDTHS = (2, 3, 4, 6, 8, 12, 16)
_STEPS = 6.0


def _planner(number: int, rng: random.Random) -> Job:
    """Draw a plan, which says how many parts there are, an executor for each, and a summary."""
    shared, width = 4_000, rng.choice(_WIDTHS)
    left = width * _STEPS + 1
    plan = Call(shared + rng.randint(500, 3_000), 0, 400, 0.1, "plan", "plan", left=left)
    calls = [plan]
    ends = _branches(rng, calls, width, _STEPS)
    calls.append(_join(calls, ends, 0, "summary", 300 * width))
    expect = 2 + _STEPS * sum(_WIDTHS) / len(_WIDTHS)
    return Job(f"planner-{number}", "planner", tuple(calls), "planner", shared, expect=expect)


def _map_reduce(number: int, rng: random.Random) -> Job:
    """Draw a call for each document and one over all answers; their number is known before."""
    shared, width = 1_000, rng.choice((4, 8, 16, 32, 48))
    calls = [
        Call(
            shared + rng.randint(3_000, 12_000),
            0,
            max(50, round(rng.gauss(250, 60))),
            0.0,
            "",
            site="map",
            chat=chat + 1,
            after=(),
            base=-1,
        )
        for chat in range(width)
    ]
    size = shared + sum(call.output for call in calls)
    calls.append(Call(size, 0, 600, 0.0, "", site="reduce", after=tuple(range(width)), base=-1))
    return Job(f"map-{number}", "map-reduce", tuple(calls), "map", shared, expect=width + 1.0)


def _best_of(number: int, rng: random.Random) -> Job:
    """Draw N attempts from one beginning, and a judge; N is an argument of the program."""
    shared, width = 3_000, rng.choice((2, 4, 8, 16))
    calls = [Call(shared + rng.randint(500, 4_000), 0, 300, 0.1, "start", "trunk")]
    ends = _branches(rng, calls, width, _STEPS)
    calls.append(_join(calls, ends, 0, "judge", 400 * width))
    expect = 2 + width * _STEPS
    return Job(f"best-{number}", "best-of-n", tuple(calls), "best", shared, expect=expect)


def _graphs(number: int, rng: random.Random) -> Job:
    return (_planner, _map_reduce, _best_of)[number % 3](number, rng)


KINDS: dict[str, Callable[[int, random.Random], Job]] = {
    "swe": _swe,
    "chats": _chats,
    "web": _web,
    "function": _function,
    "rl": _rl,
    "planner": _planner,
    "map-reduce": _map_reduce,
    "best-of-n": _best_of,
    "graphs": _graphs,
}


def generate(kind: str, count: int = 128, seed: int = 0) -> list[Job]:
    """Return `count` programs of a kind.

    Raises:
        ConfigError: the kind is not known.
    """
    if kind not in KINDS:
        raise ConfigError(f"workload {kind!r}: choose {', '.join(KINDS)}, or a trace file")
    rng = random.Random(seed)
    return [KINDS[kind](number, rng) for number in range(count)]


__all__ = ["KINDS", "generate"]
