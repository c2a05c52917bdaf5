"""Tasks of the demo: small file puzzles whose answers can only come from running tools.

Every task is a handful of files with random content and one question. The bundled tiny model
was trained on such tasks with other file names; `held_out` names were never in its training.
Adding is the `add` tool's work, looking is the shell's: the model chooses and copies.
"""

import asyncio
import hashlib
import random
from contextvars import ContextVar
from dataclasses import dataclass, field

from drawloom.environments import Env, Sandbox
from drawloom.errors import ToolError
from drawloom.tools.tool import tool

ADJECTIVES = (
    "brass brave brick bright broad bronze calm cosmic dawn deep dim dry dusty early giant "
    "glad gold heavy high idle iron large loud lucky mossy neat plain proud quiet rapid round "
    "ruby rustic sharp shy silent south stone stout sunny swift thin tidy urban wide wild "
    "wise wooden"
).split()
NOUNS = (
    "banjo barn basin beacon bell bench bird board boat bread bucket cabin canyon castle "
    "chair chest circle cliff cloud clover comet copper door drum falcon field fossil gate "
    "harbor hill lake leaf ledge lemon maple market mill mirror needle ocean orbit owl palm "
    "panda peach piano plum pond puzzle river saddle salmon sketch spring stable statue "
    "summit thunder timber tower tulip village water yard"
).split()

SYSTEM = "You answer questions about files. Use the tools."
FAMILIES = ("read", "report", "lookup", "hop", "sum", "count", "largest", "smallest", "append")
BOX = Env(image="drawloom/box:1", memory="64m", pids=64)


@dataclass(slots=True)
class Folder:
    """Write a task's files into its environment, before the first command runs there."""

    files: dict[str, str]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    laid: bool = False

    async def lay_out(self, box: Sandbox) -> None:
        """Write the files, once for each environment."""
        async with self.lock:
            if not self.laid and (await box.exec("test", "-e", ".laid")).code:
                # a resumed program finds the mark: its commands may have changed the files
                for name, text in self.files.items():
                    await box.write(name, text.encode())
                await box.write(".laid", b"")
            self.laid = True


folder: ContextVar[Folder | None] = ContextVar("drawloom_demo_folder", default=None)


@tool(env=BOX, expect=0.05, timeout=20)
async def shell(box: Sandbox, command: str) -> str:
    """Run a shell command."""
    if (here := folder.get()) is not None:
        await here.lay_out(box)
    result = await box.sh(command)
    if result.timed_out or result.code:
        raise ToolError(f"exit {result.code}: {result.text.strip()}")
    return result.text.removesuffix("\n")


@tool(readonly=True, expect=0.001)
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


TOOLS = (shell, add)


@dataclass(frozen=True, slots=True)
class Call:
    """Describe a call of a demonstration and the tool's answer."""

    name: str
    arguments: dict[str, object]
    observation: str


@dataclass(frozen=True, slots=True)
class Task:
    """Describe a puzzle.

    Attributes:
        family: kind of the puzzle, one of `FAMILIES`.
        files: text by file name.
        question: the question.
        answer: its only right answer.
        turns: a demonstration: the calls of each turn.
    """

    family: str
    files: dict[str, str]
    question: str
    answer: str
    turns: tuple[tuple[Call, ...], ...]

    def is_solved_by(self, text: str) -> bool:
        """Tell whether an answer is right."""
        return text.strip() == self.answer


def is_held_out(name: str) -> bool:
    """Tell whether a name is in the tenth of all names that is held out from training."""
    return hashlib.md5(name.encode()).digest()[0] % 10 == 0


class Names:
    """Draw distinct ``adjective-noun`` names from the training or the held-out part."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self._rng, self._held_out = rng, held_out
        self._used: set[str] = set()

    def __call__(self) -> str:
        while True:
            name = f"{self._rng.choice(ADJECTIVES)}-{self._rng.choice(NOUNS)}"
            if name not in self._used and is_held_out(name) == self._held_out:
                self._used.add(name)
                return name


def make_task(
    rng: random.Random,
    *,
    family: str | None = None,
    held_out: bool = False,
    rows: tuple[int, int] = (4, 16),
) -> Task:
    """Draw a random task.

    Args:
        rng: source of randomness.
        family: kind of the task; by default any.
        held_out: use names that are held out from training.
        rows: fewest and most lines of a report or a table.
    """
    kind = family or rng.choice(FAMILIES)
    return _MAKERS[kind](rng, Names(rng, held_out), rows)


def _number(rng: random.Random) -> int:
    return rng.randint(10, 999)


def _sh(command: str, observation: str) -> Call:
    return Call("shell", {"command": command}, observation)


def _table(rng: random.Random, rows: tuple[int, int]) -> list[tuple[str, int]]:
    keys = rng.sample(NOUNS, min(len(NOUNS), rng.randint(*rows)))
    return [(key, _number(rng)) for key in keys]


def _text(table: list[tuple[str, int]]) -> str:
    return "\n".join(f"{key} {value}" for key, value in table)


def _numbers(rng: random.Random) -> list[int]:
    return rng.sample(range(10, 1000), rng.randint(3, 9))


def _lines(numbers: list[int]) -> str:
    return "".join(f"{n}\n" for n in numbers)


def _read(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    file, value = name() + ".txt", _number(rng)
    turn = (_sh(f"cat {file}", str(value)),)
    question = f"What number is in {file}?"
    return Task("read", {file: f"{value}\n"}, question, str(value), (turn,))


def _report(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    file, value = name() + ".txt", _number(rng)
    text = f"{_text(_table(rng, rows))}\ntotal {value}"
    question = f"What total does the report {file} give?"
    return Task("report", {file: text + "\n"}, question, str(value), ((_sh(f"cat {file}", text),),))


def _lookup(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    file, table = name() + ".txt", _table(rng, rows)
    key, value = rng.choice(table)
    turn = (_sh(f"grep {key} {file}", f"{key} {value}"),)
    question = f"What number has {key} in {file}?"
    return Task("lookup", {file: _text(table) + "\n"}, question, str(value), (turn,))


def _hop(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    first, second = name() + ".txt", name() + ".txt"
    owners = rng.sample(NOUNS, 4)
    index = [(owners[0], second)] + [(owner, name() + ".txt") for owner in owners[1:]]
    rng.shuffle(index)
    value = _number(rng)
    text = f"{_text(_table(rng, rows))}\ntotal {value}"
    turns = (
        (_sh(f"grep {owners[0]} {first}", f"{owners[0]} {second}"),),
        (_sh(f"cat {second}", text),),
    )
    listing = "".join(f"{owner} {file}\n" for owner, file in index)
    question = f"Which report has {owners[0]} in {first}, and what total does it give?"
    return Task("hop", {first: listing, second: text + "\n"}, question, str(value), turns)


def _sum(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    files, values = [name() + ".txt", name() + ".txt"], [_number(rng), _number(rng)]
    reads = tuple(_sh(f"cat {f}", str(v)) for f, v in zip(files, values, strict=True))
    total = str(sum(values))
    addition = Call("add", {"a": values[0], "b": values[1]}, total)
    content = {f: f"{v}\n" for f, v in zip(files, values, strict=True)}
    question = f"What is the sum of {files[0]} and {files[1]}?"
    return Task("sum", content, question, total, (reads, (addition,)))


def _count(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    file, numbers = name() + ".txt", _numbers(rng)
    count = str(len(numbers))
    turn = (_sh(f"wc -l < {file}", count),)
    return Task("count", {file: _lines(numbers)}, f"How many lines has {file}?", count, (turn,))


def _extreme(rng: random.Random, name: Names, which: str) -> Task:
    file, numbers = name() + ".txt", _numbers(rng)
    value = str(max(numbers) if which == "largest" else min(numbers))
    end = "tail" if which == "largest" else "head"
    turn = (_sh(f"sort -n {file} | {end} -n 1", value),)
    question = f"What is the {which} number in {file}?"
    return Task(which, {file: _lines(numbers)}, question, value, (turn,))


def _append(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    file, numbers, extra = name() + ".txt", _numbers(rng), _number(rng)
    value = str(max([*numbers, extra]))
    turns = (
        (_sh(f"echo {extra} >> {file}", ""),),
        (_sh(f"sort -n {file} | tail -n 1", value),),
    )
    question = f"Append {extra} to {file}. What is the largest number in it now?"
    return Task("append", {file: _lines(numbers)}, question, value, turns)


_MAKERS = {
    "read": _read,
    "report": _report,
    "lookup": _lookup,
    "hop": _hop,
    "sum": _sum,
    "count": _count,
    "largest": lambda rng, name, rows: _extreme(rng, name, "largest"),
    "smallest": lambda rng, name, rows: _extreme(rng, name, "smallest"),
    "append": _append,
}

__all__ = [
    "BOX",
    "FAMILIES",
    "SYSTEM",
    "TOOLS",
    "Call",
    "Folder",
    "Task",
    "add",
    "folder",
    "make_task",
    "shell",
]
