"""The demo's world: small file puzzles whose answers can only come from running tools.

Every task is a handful of files with random content and one question. The tiny model in the box
was trained on such tasks with other file names; `held_out` names were never in its training.
Adding is the `add` tool's work, looking is the shell's: the model chooses and copies.
"""

import hashlib
import random
from dataclasses import dataclass

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
FAMILIES = ("read", "lookup", "hop", "sum", "count", "largest", "smallest", "append")
BOX = Env(image="drawloom/box:1", memory="64m", pids=64)


@tool(env=BOX, expect=0.05, timeout=20)
async def shell(box: Sandbox, command: str) -> str:
    """Run a shell command."""
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
    """One call of a demonstration and what the tool answers."""

    name: str
    arguments: dict[str, object]
    observation: str


@dataclass(frozen=True, slots=True)
class Task:
    """A puzzle: files to lay out, a question, its only right answer, and how to get there.

    Each turn has a thought and its calls. Where an answer is picked from a table, the model first
    says which row it picks: what follows a name is easy to copy for a million parameters, finding
    it unspoken is not.
    """

    family: str
    files: dict[str, str]
    question: str
    answer: str
    turns: tuple[tuple[str, tuple[Call, ...]], ...]
    row: str = ""

    @property
    def final(self) -> str:
        """The last message of a right solution."""
        return f"{self.row} {self.answer}".strip()

    def is_solved_by(self, text: str) -> bool:
        return text.split()[-1:] == [self.answer]


def is_held_out(name: str) -> bool:
    """Whether a name belongs to the tenth of all names that training never sees."""
    return hashlib.md5(name.encode()).digest()[0] % 10 == 0


class Names:
    """Draws ``adjective_noun`` names from the training or the held-out part.

    No adjective comes twice in one task, so a name is known by its first word.
    """

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self._held_out = held_out
        self._adjectives = rng.sample(ADJECTIVES, len(ADJECTIVES))
        self._rng = rng

    def __call__(self) -> str:
        adjective = self._adjectives.pop()
        while True:
            name = f"{adjective}_{self._rng.choice(NOUNS)}"
            if is_held_out(name) == self._held_out:
                return name


def make_task(
    rng: random.Random,
    *,
    family: str | None = None,
    held_out: bool = False,
    rows: tuple[int, int] = (4, 16),
) -> Task:
    """A random task. `rows` bounds the lines of a table."""
    name = Names(rng, held_out)
    kind = family or rng.choice(FAMILIES)
    return _MAKERS[kind](rng, name, rows)


def _number(rng: random.Random) -> int:
    return rng.randint(10, 999)


def _sh(command: str, observation: str) -> Call:
    return Call("shell", {"command": command}, observation)


def _turn(*calls: Call, thought: str = "") -> tuple[str, tuple[Call, ...]]:
    return thought, calls


def _table(rng: random.Random, name: Names, rows: tuple[int, int]) -> list[tuple[str, int]]:
    return [(name(), _number(rng)) for _ in range(rng.randint(*rows))]


def _text(table: list[tuple[str, int]]) -> str:
    return "\n".join(f"{key} {value}" for key, value in table)


def _numbers(rng: random.Random) -> list[int]:
    return rng.sample(range(10, 1000), rng.randint(3, 9))


def _read(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    file, value = name() + ".txt", _number(rng)
    turn = _turn(_sh(f"cat {file}", str(value)))
    question = f"What number is in {file}?"
    return Task("read", {file: f"{value}\n"}, question, str(value), (turn,))


def _lookup(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    file, table = name() + ".txt", _table(rng, name, rows)
    key, value = rng.choice(table)
    turn = _turn(_sh(f"cat {file}", _text(table)))
    question = f"What is {key} in {file}?"
    return Task("lookup", {file: _text(table) + "\n"}, question, str(value), (turn,), key)


def _hop(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    first, second = name() + ".txt", name() + ".txt"
    index = [(name(), name() + ".txt") for _ in range(rng.randint(rows[0] // 2, rows[1] // 2))]
    place = rng.randrange(len(index))
    owner = index[place][0]
    index[place] = (owner, second)
    listing = "\n".join(f"{key} {file}" for key, file in index)
    table = [*_table(rng, name, rows), (owner, _number(rng))]
    rng.shuffle(table)
    value = dict(table)[owner]
    turns = (
        _turn(_sh(f"cat {first}", listing)),
        _turn(_sh(f"cat {second}", _text(table)), thought=f"{owner} {second}"),
    )
    files = {first: listing + "\n", second: _text(table) + "\n"}
    question = f"What is {owner} in the file that {first} names for it?"
    return Task("hop", files, question, str(value), turns, owner)


def _sum(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    files, values = [name() + ".txt", name() + ".txt"], [_number(rng), _number(rng)]
    reads = tuple(_sh(f"cat {f}", str(v)) for f, v in zip(files, values, strict=True))
    total = str(sum(values))
    addition = Call("add", {"a": values[0], "b": values[1]}, total)
    content = {f: f"{v}\n" for f, v in zip(files, values, strict=True)}
    question = f"What is the sum of {files[0]} and {files[1]}?"
    return Task("sum", content, question, total, (_turn(*reads), _turn(addition)))


def _count(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    file, numbers = name() + ".txt", _numbers(rng)
    turn = _turn(_sh(f"wc -l < {file}", str(len(numbers))))
    content = "".join(f"{n}\n" for n in numbers)
    return Task("count", {file: content}, f"How many lines has {file}?", str(len(numbers)), (turn,))


def _extreme(rng: random.Random, name: Names, which: str) -> Task:
    file, numbers = name() + ".txt", _numbers(rng)
    value = max(numbers) if which == "largest" else min(numbers)
    end = "tail" if which == "largest" else "head"
    turn = _turn(_sh(f"sort -n {file} | {end} -n 1", str(value)))
    content = "".join(f"{n}\n" for n in numbers)
    question = f"What is the {which} number in {file}?"
    return Task(which, {file: content}, question, str(value), (turn,))


def _append(rng: random.Random, name: Names, rows: tuple[int, int]) -> Task:
    file, numbers, extra = name() + ".txt", _numbers(rng), _number(rng)
    listing = [*numbers, extra]
    value = str(max(listing))
    turns = (
        _turn(_sh(f"echo {extra} >> {file}", "")),
        _turn(_sh(f"sort -n {file} | tail -n 1", value)),
    )
    content = "".join(f"{n}\n" for n in numbers)
    question = f"Append {extra} to {file}. What is the largest number in it now?"
    return Task("append", {file: content}, question, value, turns)


_MAKERS = {
    "read": _read,
    "lookup": _lookup,
    "hop": _hop,
    "sum": _sum,
    "count": _count,
    "largest": lambda rng, name, rows: _extreme(rng, name, "largest"),
    "smallest": lambda rng, name, rows: _extreme(rng, name, "smallest"),
    "append": _append,
}

__all__ = ["BOX", "FAMILIES", "SYSTEM", "TOOLS", "Call", "Task", "add", "make_task", "shell"]
