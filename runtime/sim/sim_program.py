"""Simulated programs on their way, and their outcome."""

from dataclasses import dataclass, field
from itertools import count

from drawloom.runtime.sim.sim_calls import Counters
from drawloom.runtime.sim.sim_host import HostCounters
from drawloom.runtime.sim.workload import Job


@dataclass(slots=True)
class Ended:
    """Keep the times of a program, in seconds.

    Attributes:
        job: the program.
        began: when it arrived.
        ended: when it ended.
        admission: from its first call's readiness to that call's first token.
        waits: the same of each later call.
    """

    job: Job
    began: float
    ended: float = 0.0
    admission: float = 0.0
    waits: list[float] = field(default_factory=list)

    @property
    def jct(self) -> float:
        """Return the seconds from arrival to end."""
        return self.ended - self.job.arrival


@dataclass(slots=True)
class Outcome:
    """Keep the outcome of a simulation.

    Attributes:
        policy: its name.
        ended: its programs.
        counters: of all engines.
        recomputed: prompt tokens that were computed though they had been in a cache before.
        fresh: tokens that had not.
        seconds: simulated.
        events: that the scheduler handled.
        host: counters of the sandbox host, if there is one.
        moves: how often programs changed their engine.
        moved: KV tokens that went with them.
        engines: how many.
    """

    policy: str
    ended: list[Ended]
    counters: Counters
    recomputed: int
    fresh: int
    seconds: float
    events: int
    host: HostCounters | None = None
    moves: int = 0
    moved: int = 0
    engines: int = 1


def conversation_of(program: str, chat: int) -> str:
    """Return the name of a program's conversation."""
    return f"{program}.{chat}" if chat else program


class SimProgram:
    """Keep which calls of a job have ended, and what the next ones begin with.

    Attributes:
        job: the program.
        result: its times.
        ended: calls that have ended.
        contexts: contexts of ended calls, as long as a call is to go on from them.
        chats: conversations that have begun.
        calls_of: calls to come in each conversation.
    """

    def __init__(self, job: Job, now: float) -> None:
        self.job, self.result = job, Ended(job, now)
        self.ended: set[int] = set()
        self.contexts: dict[int, list[int]] = {}
        self.chats = {0}
        self.calls_of: dict[int, int] = {}
        self._returned: dict[int, float] = {}
        numbers = range(len(job.calls))
        self._waits_for = [set(job.after(at)) for at in numbers]
        self._heirs = [0] * len(job.calls)
        for at in numbers:
            if (base := job.base(at)) >= 0:
                self._heirs[base] += 1
            chat = job.calls[at].chat
            self.calls_of[chat] = self.calls_of.get(chat, 0) + 1

    @property
    def first(self) -> list[int]:
        """Return the calls that wait for no other."""
        return [at for at, wanted in enumerate(self._waits_for) if not wanted]

    @property
    def done(self) -> bool:
        """Return True once all calls have ended."""
        return len(self.ended) == len(self.job.calls)

    def finished(self, at: int, context: list[int]) -> None:
        """Note a call that has ended, with its context."""
        self.ended.add(at)
        self.calls_of[self.job.calls[at].chat] -= 1
        if self._heirs[at]:
            self.contexts[at] = context

    def inherit(self, at: int) -> list[int]:
        """Return the context that a call goes on from, and drop it after the last such call."""
        base = self.job.base(at)
        context = self.contexts[base]
        self._heirs[base] -= 1
        if not self._heirs[base]:
            del self.contexts[base]
        return context

    def returned(self, at: int, when: float) -> list[tuple[int, float]]:
        """Note when the calls after an ended one may go on.

        Returns:
            The calls that wait for nothing else, and when each may start.
        """
        self._returned[at] = when
        found = []
        for other, wanted in enumerate(self._waits_for):
            if at in wanted:
                wanted.discard(at)
                if not wanted:
                    ready = max(self._returned[n] for n in self.job.after(other))
                    found.append((other, ready))
        return found


class Prompts:
    """Make prompts: one number for every `unit` tokens, equal for equal tokens."""

    def __init__(self, unit: int) -> None:
        self.unit = unit
        self._fresh = count(1)
        self._prefixes: dict[str, list[int]] = {}

    def of(self, program: SimProgram, at: int) -> tuple[list[int], int]:
        """Return a call's prompt, and how much of it was in the context that it goes on from."""
        job, call = program.job, program.job.calls[at]
        follows = job.base(at) >= 0
        inherited = call.reuse // self.unit
        begin = program.inherit(at)[:inherited] if follows else self._prefix(job)
        total = max(1, round(call.prompt / self.unit))
        begin = begin[:total]
        return begin + self.new(self.unit * (total - len(begin))), len(begin) if follows else 0

    def new(self, tokens: int) -> list[int]:
        """Return numbers for tokens that are new."""
        return [next(self._fresh) for _ in range(-(-tokens // self.unit))]

    def _prefix(self, job: Job) -> list[int]:
        size = job.shared // self.unit
        known = self._prefixes.setdefault(job.prefix, [])
        known += [next(self._fresh) for _ in range(size - len(known))]
        return known[:size]


__all__ = ["Ended", "Outcome", "Prompts", "SimProgram", "conversation_of"]
