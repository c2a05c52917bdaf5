"""Tasks that agents play against every server: what is said, how much is answered, and pauses."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from drawloom.errors import ConfigError
from drawloom.runtime.bench import replay_scaling
from drawloom.runtime.sim.synthetic import generate
from drawloom.runtime.sim.workload import Job

WORKLOADS = ("coding-tools", "coding-text", "chats", "best-of-n", "rl-groups")
GROUP = 4  # programs of an RL group, and answers of a best-of-n
_LEAST = 8  # tokens of the shortest message and answer: fewer are all template
_LONGEST_GAP = 10.0  # pauses are cut at so many times their mean
_WORDS = (
    "alpha beta gamma delta river mountain stone file error line test value import return class "
    "def print index token cache block lease tool shell output"
).split()  # one token each

Message = dict[str, Any]

TOOLS: tuple[dict[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string"}},
                "required": [argument],
            },
        },
    }
    for name, about, argument in (
        ("bash", "Run a command.", "command"),
        ("read_file", "Return the lines of a file.", "path"),
        ("edit", "Replace text in a file.", "patch"),
    )
)


@dataclass(frozen=True, slots=True)
class Turn:
    """Describe one LLM call of a task.

    Args:
        added: messages that follow what has been said before.
        output: tokens that the server has to answer.
        gap: seconds after the answer until the next call.
        recorded: the answer as the history has it, where that is not what came back.
        afresh: the history before it, up to the system prompt, is dropped (compacted).
        choices: answers wanted.
    """

    added: tuple[Message, ...]
    output: int
    gap: float
    recorded: Message
    afresh: bool = False
    choices: int = 1


@dataclass(frozen=True, slots=True)
class Task:
    """Describe a program: its turns and the tools that it offers."""

    id: str
    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()
    recorded: bool = False
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Describe how recorded programs are scaled to a small machine.

    Args:
        turns: calls of a program, at most.
        peak: mean tokens of a program's context at its largest.
        gap: mean seconds between two calls.
    """

    turns: int = 12
    peak: int = 2000
    gap: float = 1.0


def words(rng: random.Random, count: int) -> str:
    """Return text of about `count` tokens."""
    return " ".join(rng.choices(_WORDS, k=max(1, count)))


def make(
    workload: str,
    count: int,
    salt: str,
    jobs: Sequence[Job] = (),
    shape: Shape | None = None,
    rewritten: bool = False,
) -> list[Task]:
    """Return the tasks of a workload; the same ones for equal arguments.

    Args:
        workload: one of `WORKLOADS`.
        count: tasks.
        salt: texts of different salts have no beginning in common.
        jobs: recorded programs for coding; without any, synthetic ones.
        shape: what recorded programs are scaled to.
        rewritten: the history has recorded answers in place of what came back.

    Raises:
        ConfigError: there is no such workload.
    """
    rng = random.Random(f"{workload}/{salt}")
    if workload in ("coding-tools", "coding-text"):
        tools = workload == "coding-tools"
        found = scaled(jobs or generate("swe"), count, rng, shape or Shape())
        return [coding(job, salt, rng, tools, rewritten) for job in found]
    if workload == "chats":
        return [_chat(f"{n}", salt, rng, rewritten) for n in range(count)]
    if workload == "best-of-n":
        return [_best(f"{n}", salt, rng, rewritten) for n in range(count)]
    if workload == "rl-groups":
        return [_rollout(n, salt, rng, rewritten) for n in range(count)]
    raise ConfigError(f"workload {workload!r}: choose one of {', '.join(WORKLOADS)}, or all")


# --- coding agents --------------------------------------------------------------------------


def scaled(jobs: Sequence[Job], count: int, rng: random.Random, shape: Shape) -> list[Job]:
    """Return `count` recorded programs, drawn with replacement and scaled."""
    usable = [job for job in jobs if len(job.calls) >= 3]
    if not usable:
        raise ConfigError("no program of the trace has three calls")
    limit = _LONGEST_GAP * fmean(call.gap for job in usable for call in job.calls)
    cut = [
        replace(
            job,
            calls=tuple(replace(c, gap=min(limit, c.gap)) for c in job.calls[: shape.turns]),
        )
        for job in usable
    ]
    peak = fmean(max(call.context for call in job.calls) for job in cut)
    gap = fmean(call.gap for job in cut for call in job.calls[:-1])
    small = replay_scaling.scaled(cut, shape.peak / peak, shape.gap / max(1e-9, gap))
    return [replace(rng.choice(small), id=f"{number}") for number in range(count)]


def coding(job: Job, salt: str, rng: random.Random, tools: bool, rewritten: bool) -> Task:
    """Return a recorded coding program as messages."""
    system = words(random.Random(f"{salt}/{job.prefix}"), job.shared)
    turns: list[Turn] = []
    context = 0
    for at, call in enumerate(job.calls):
        afresh = bool(at) and call.reuse < job.calls[at - 1].prompt // 2  # compacted
        new = call.prompt - (context if at and not afresh else job.shared)
        text = words(rng, max(_LEAST, new))
        if not at:
            added: tuple[Message, ...] = (
                {"role": "system", "content": f"You are a coding agent. {system}"},
                {"role": "user", "content": f"Task {job.id}: {text}"},
            )
        elif afresh:
            added = ({"role": "user", "content": f"Summary of what was done: {text}"},)
        elif tools:
            name = turns[-1].recorded["tool_calls"][0]["id"]
            added = ({"role": "tool", "tool_call_id": name, "content": text},)
        else:
            added = ({"role": "user", "content": f"Observation: {text}"},)
        output = max(_LEAST, call.output)
        said = _call(rng, output, f"call{at}") if tools else _said(rng, output)
        turns.append(Turn(added, output, call.gap, said, afresh))
        context = call.context
    return Task(job.id, tuple(turns), TOOLS if tools else (), recorded=tools or rewritten)


def _said(rng: random.Random, tokens: int) -> Message:
    return {"role": "assistant", "content": words(rng, tokens)}


def _call(rng: random.Random, tokens: int, name: str) -> Message:
    tool = rng.choice(TOOLS)["function"]
    argument = next(iter(tool["parameters"]["properties"]))
    arguments = json.dumps({argument: words(rng, tokens)})
    function = {"name": tool["name"], "arguments": arguments}
    calls = [{"id": name, "type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


# --- others ---------------------------------------------------------------------------------


def _chat(name: str, salt: str, rng: random.Random, rewritten: bool) -> Task:
    """Make a chat of 3 to 6 questions, whose reader takes about 4 seconds for each answer."""
    turns = []
    for at in range(rng.randint(3, 6)):
        question: Message = {"role": "user", "content": words(rng, rng.randint(15, 80))}
        system = words(random.Random(salt), 60)
        added = ({"role": "system", "content": system}, question) if not at else (question,)
        output = rng.randint(32, 96)
        turns.append(Turn(added, output, rng.lognormvariate(1.1, 0.7), _said(rng, output)))
    return Task(name, tuple(turns), recorded=rewritten)


def _best(name: str, salt: str, rng: random.Random, rewritten: bool) -> Task:
    """Return a program of three questions, several answers to each, and one that judges them."""
    system = words(random.Random(salt), 250)
    turns = []
    for at in range(3):
        question: Message = {"role": "user", "content": words(rng, 150)}
        added = ({"role": "system", "content": system}, question) if not at else (question,)
        turns.append(Turn(added, 48, 0.0, _said(rng, 48), choices=GROUP))
        judge: Message = {"role": "user", "content": "Which of these is the best, and why?"}
        turns.append(Turn((judge,), 16, rng.lognormvariate(-0.3, 0.9), _said(rng, 16)))
    return Task(name, tuple(turns), recorded=rewritten, temperature=1.0)


def _rollout(number: int, salt: str, rng: random.Random, rewritten: bool) -> Task:
    """Make one of `GROUP` programs with an equal prompt and tool results of their own."""
    group = random.Random(f"{salt}/{number // GROUP}")
    start = (
        {"role": "system", "content": words(random.Random(salt), 250)},
        {"role": "user", "content": words(group, 350)},
    )
    turns = []
    for at in range(5):
        result: Message = {"role": "user", "content": f"Result: {words(rng, 80)}"}
        gap = rng.lognormvariate(-1.0, 0.9)
        turns.append(Turn((result,) if at else start, 48, gap, _said(rng, 48)))
    return Task(f"{number}", tuple(turns), recorded=rewritten, temperature=1.0)


__all__ = [
    "GROUP",
    "TOOLS",
    "WORKLOADS",
    "Message",
    "Shape",
    "Task",
    "Turn",
    "coding",
    "make",
    "scaled",
    "words",
]
