"""The engines of a simulation. Each is advanced only when something happens at it, so that sixty of
them cost little more than one."""

import heapq
from dataclasses import dataclass
from itertools import count

from drawloom.runtime.sim.presets import Machine
from drawloom.runtime.sim.sim_calls import Counters, Work
from drawloom.runtime.sim.sim_engine import SimEngine

_HANDSHAKE = 0.03


@dataclass(slots=True)
class News:
    """Calls that ended at an engine; that were preempted there; and that decoded, with the tokens
    of their contexts."""

    engine: str
    ended: list[Work]
    preempted: list[Work]
    decoded: list[tuple[str, int]]


class Engines:
    """`at` gives an engine at the time that is now; `settle` lets what was touched go on.

    Attributes:
        all: the engines by name.
        moved: KV tokens that went from one to another.
    """

    def __init__(self, machine: Machine, host: bool, spill: bool, replicas: int) -> None:
        names = [f"sim-{number}" for number in range(replicas)] if replicas > 1 else ["sim"]
        self.all = {name: SimEngine(machine, host, spill) for name in names}
        self.now, self.moved = 0.0, 0
        self._machine = machine
        self._touched: dict[str, None] = {}
        self._due: dict[str, int] = {}
        self._agenda: list[tuple[float, int, str]] = []
        self._numbers = count()

    @property
    def counters(self) -> Counters:
        """Of all of them; seconds are summed."""
        total = Counters()
        for engine in self.all.values():
            for name in Counters.__slots__:
                value = getattr(total, name) + getattr(engine.counters, name)
                setattr(total, name, value)
        return total

    @property
    def waiting(self) -> int:
        return sum(engine.waiting for engine in self.all.values())

    def at(self, name: str) -> SimEngine:
        """An engine, for something that happens at it now."""
        engine = self.all[name]
        if name not in self._touched:
            self._touched[name] = None
            engine.cache.expire(self.now)
            engine.advance(self.now)
        return engine

    def next_event(self) -> float | None:
        """When something changes by itself."""
        while self._agenda and self._due.get(self._agenda[0][2]) != self._agenda[0][1]:
            heapq.heappop(self._agenda)
        return self._agenda[0][0] if self._agenda else None

    def due(self) -> None:
        """It is the time of the next events."""
        while (soon := self.next_event()) is not None and soon <= self.now:
            self.at(heapq.heappop(self._agenda)[2])

    def settle(self) -> list[News]:
        """Carry out what was asked of engines since the last time; return what came of it."""
        news = list[News]()
        for name in list(self._touched):
            engine = self.all[name]
            engine.transfer()
            engine.advance(self.now)
            if engine.finished:
                news.append(News(name, engine.finished, engine.gave_way, engine.decoding))
            elif engine.gave_way or engine.spoke:
                said = [(w.step, engine.context(w)) for w in engine.spoke if w.left <= 0]
                news.append(News(name, [], engine.gave_way, said))
            else:
                continue
            engine.finished, engine.gave_way, engine.spoke = [], [], []
        if not news:
            for name in self._touched:
                self._plan(name)
            self._touched.clear()
        return news

    def _plan(self, name: str) -> None:
        soon, number = self.all[name].next_event(), next(self._numbers)
        self._due[name] = number
        if soon is not None:
            heapq.heappush(self._agenda, (max(soon, self.now), number, name))

    # --- from one to another --------------------------------------------------------------

    def move(self, source: str, conversation: str) -> tuple[list[int], float]:
        """A conversation's KV sets out; what it has, and when it is there. It takes a handshake
        and two copies, out of one device and into another."""
        found = self.at(source).cache.block_locations(conversation)
        units = found[0] if found is not None else []
        tokens = len(units) * self._machine.unit
        self.moved += tokens
        return units, self.now + _HANDSHAKE + 2 * self._machine.cost.restore(tokens)

    def arrive(self, target: str, conversation: str, units: list[int]) -> None:
        """It is there, as much of it as finds room."""
        self.at(target).cache.import_tokens(conversation, units, b"")


__all__ = ["Engines", "News"]
