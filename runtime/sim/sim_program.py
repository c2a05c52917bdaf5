"""A simulated program on its way, and what becomes of it."""

from dataclasses import dataclass, field
from itertools import count

from drawloom.runtime.sim.sim_calls import Counters
from drawloom.runtime.sim.sim_host import HostCounters
from drawloom.runtime.sim.workload import Job


@dataclass(slots=True)
class Ended:
    """What became of a program; seconds. `waits` are from ready to the first token of its later
    calls, `admission` of its first."""

    job: Job
    began: float
    ended: float = 0.0
    admission: float = 0.0
    waits: list[float] = field(default_factory=list)

    @property
    def jct(self) -> float:
        return self.ended - self.job.arrival


@dataclass(slots=True)
class Outcome:
    """One run. `recomputed` prompt tokens had been in a cache before, `fresh` tokens had not.
    Programs made `moves` between `engines`, with `moved` KV tokens."""

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
    """The name of a program's conversation."""
    return f"{program}.{chat}" if chat else program


class Running:
    """A job on its way: which calls have ended, when what follows them could go on, and what their
    contexts were as long as something goes on from them."""

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
        """The calls that wait for no other."""
        return [at for at, wanted in enumerate(self._waits_for) if not wanted]

    @property
    def done(self) -> bool:
        return len(self.ended) == len(self.job.calls)

    def finished(self, at: int, context: list[int]) -> None:
        """A call has ended, with such a context."""
        self.ended.add(at)
        self.calls_of[self.job.calls[at].chat] -= 1
        if self._heirs[at]:
            self.contexts[at] = context

    def inherit(self, at: int) -> list[int]:
        """What a call goes on from; nothing else may ask for it again after the last one."""
        base = self.job.base(at)
        context = self.contexts[base]
        self._heirs[base] -= 1
        if not self._heirs[base]:
            del self.contexts[base]
        return context

    def returned(self, at: int, when: float) -> list[tuple[int, float]]:
        """What follows a call could go on `when`; the calls that wait for nothing else, and from
        when on."""
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
    """What prompts consist of: one number for every `unit` tokens, equal for equal tokens."""

    def __init__(self, unit: int) -> None:
        self.unit = unit
        self._fresh = count(1)
        self._prefixes: dict[str, list[int]] = {}

    def of(self, running: Running, at: int) -> tuple[list[int], int]:
        """A call's prompt, and how much of it was in the context that it goes on from."""
        job, call = running.job, running.job.calls[at]
        follows = job.base(at) >= 0
        inherited = call.reuse // self.unit
        begin = running.inherit(at)[:inherited] if follows else self._prefix(job)
        total = max(1, round(call.prompt / self.unit))
        begin = begin[:total]
        return begin + self.new(self.unit * (total - len(begin))), len(begin) if follows else 0

    def new(self, tokens: int) -> list[int]:
        return [next(self._fresh) for _ in range(-(-tokens // self.unit))]

    def _prefix(self, job: Job) -> list[int]:
        size = job.shared // self.unit
        known = self._prefixes.setdefault(job.prefix, [])
        known += [next(self._fresh) for _ in range(size - len(known))]
        return known[:size]


__all__ = ["Ended", "Outcome", "Prompts", "Running", "conversation_of"]
