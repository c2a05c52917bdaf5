"""Decide which programs a pause/resume proxy holds: ThunderAgent's rules for one backend.

By ThunderAgent at commit a7eef77 (arXiv 2602.13692), one server behind it. A program counts with
all tokens of its last call while it computes and while its tool runs. Every tick: held programs
are let go on, first those that are in the middle of their work, each time the smallest first, as
long as they fit; then, where what counts is more than the server holds, programs whose tool runs
are held, the smallest first, and after these programs that compute are marked, to be held when
their call ends. Two defects of that commit are left out, since they only slow it: marked programs
count as held when the next one is considered (it marked all of them), and a call that fails counts
as ended (it counted for ever).
"""

from dataclasses import dataclass, field
from enum import Enum

BUFFER = 100  # tokens added for each program, for what it is about to write
TICK = 5.0  # seconds between two decisions (--scheduler-interval)
LONGEST = 1800.0  # seconds after which a held program goes on whatever happens
FIRST_RATIO = 5.0  # characters of a request a token, until the first answer said its tokens
_NEW = 0.2  # weight of the newest sample of that ratio


class State(Enum):
    """Name the states of a program; HELD is `paused` in the paper."""

    REASONING = "reasoning"
    ACTING = "acting"
    HELD = "held"


@dataclass(slots=True)
class Seen:
    """Hold a program as the proxy sees it; `waits`: it has sent a request that is held."""

    name: str
    state: State = State.REASONING
    tokens: int = 0
    steps: int = 0
    marked: bool = False
    waits: bool = False

    @property
    def weight(self) -> int:
        """Return the tokens that it counts with."""
        return self.tokens + BUFFER


@dataclass(slots=True)
class Pausing:
    """Which programs go on and which are held, from what was sent and answered.

    Args:
        capacity: tokens of KV that the server holds.
    """

    capacity: int
    programs: dict[str, Seen] = field(default_factory=dict)
    _ratio: float = FIRST_RATIO
    _sampled: bool = False

    @property
    def remaining(self) -> int:
        """Return the tokens that are left, less than 0 where there are too many programs."""
        counted = (p.weight for p in self.programs.values() if p.state is not State.HELD)
        return self.capacity - sum(counted)

    def asked(self, name: str, characters: int) -> bool:
        """Note a request of so many characters; return whether it may go on now."""
        program = self.programs.setdefault(name, Seen(name, State.HELD))
        program.steps += 1
        program.tokens = int(characters / self._ratio)
        if program.steps == 1:
            queue = any(p.state is State.HELD and p.waits for p in self.programs.values())
            if not queue and self.remaining >= program.weight:
                program.state = State.REASONING
        elif program.state is State.ACTING:
            program.state = State.REASONING
        program.waits = program.state is State.HELD
        return not program.waits

    def answered(self, name: str, characters: int, prompt: int, total: int) -> None:
        """Note that a call has ended, with the server's usage in tokens; 0 if unknown."""
        program = self.programs.get(name)
        if program is None:  # released meanwhile
            return
        if prompt:
            sample = characters / prompt
            self._ratio = _NEW * sample + (1 - _NEW) * self._ratio if self._sampled else sample
            self._sampled = True
            program.tokens = total
        program.state = State.HELD if program.marked else State.ACTING
        program.marked = False

    def ended(self, name: str) -> None:
        """Forget a program."""
        self.programs.pop(name, None)

    def tick(self) -> list[str]:
        """Decide once for all. Return the names of the waiting programs that go on now."""
        going = self._resume()
        self._pause()
        return going

    def go_on(self, name: str) -> None:
        """Let a held program go on whatever there is room for."""
        program = self.programs.get(name)
        if program is not None and program.state is State.HELD:
            program.state = State.REASONING if program.waits else State.ACTING
            program.waits = False

    def _resume(self) -> list[str]:
        held = [p for p in self.programs.values() if p.state is State.HELD]
        held.sort(key=lambda p: (not p.waits, p.steps == 1, p.tokens))
        room, going = self.remaining, []
        for program in held:
            if program.weight > room:
                break
            room -= program.weight
            if program.waits:
                going.append(program.name)
            self.go_on(program.name)
        return going

    def _pause(self) -> None:
        over = -self.remaining
        counted = [p for p in self.programs.values() if p.state is not State.HELD]
        over -= sum(p.weight for p in counted if p.marked)
        counted.sort(key=lambda p: (p.state is State.REASONING, p.tokens))
        for program in counted:
            if over <= 0:
                return
            if program.marked:
                continue
            over -= program.weight
            if program.state is State.ACTING:
                program.state = State.HELD
            else:
                program.marked = True


__all__ = ["BUFFER", "FIRST_RATIO", "LONGEST", "TICK", "Pausing", "Seen", "State"]
