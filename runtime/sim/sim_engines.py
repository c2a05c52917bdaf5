"""Engines of a simulation, each advanced only when something happens at it."""

from dataclasses import dataclass
from itertools import count

from drawloom.runtime.scheduler.lazy_heap import LazyHeap
from drawloom.runtime.sim.presets import Machine
from drawloom.runtime.sim.sim_calls import Counters, Work
from drawloom.runtime.sim.sim_engine import SimEngine

_HANDSHAKE = 0.03


@dataclass(slots=True)
class EngineReport:
    """Report what happened at an engine.

    Attributes:
        engine: its name.
        ended: calls that ended.
        preempted: calls that were preempted.
        decoded: calls that decoded, with the tokens of their contexts.
    """

    engine: str
    ended: list[Work]
    preempted: list[Work]
    decoded: list[tuple[str, int]]


class SimEngines:
    """Advance several engines: `at` returns one at the present time, `settle` lets it go on.

    Attributes:
        all: engines by name.
        now: seconds.
        moved: KV tokens that went from one to another.
    """

    def __init__(self, machine: Machine, host: bool, spill: bool, replicas: int) -> None:
        names = [f"sim-{number}" for number in range(replicas)] if replicas > 1 else ["sim"]
        self.all = {name: SimEngine(machine, host, spill) for name in names}
        self.now, self.moved = 0.0, 0
        self._machine = machine
        self._touched: dict[str, None] = {}
        self._due: dict[str, int] = {}
        self._agenda = LazyHeap[tuple[float, int, str]](self._is_current)
        self._numbers = count()

    @property
    def counters(self) -> Counters:
        """Return the sum of all engines' counters."""
        total = Counters()
        for engine in self.all.values():
            for name in Counters.__slots__:
                value = getattr(total, name) + getattr(engine.counters, name)
                setattr(total, name, value)
        return total

    @property
    def waiting(self) -> int:
        """Return the calls that wait at all engines."""
        return sum(engine.waiting for engine in self.all.values())

    def at(self, name: str) -> SimEngine:
        """Return an engine, for something that happens at it now."""
        engine = self.all[name]
        if name not in self._touched:
            self._touched[name] = None
            engine.cache.expire(self.now)
            engine.advance(self.now)
        return engine

    def next_event(self) -> float | None:
        """Return when something changes by itself; None if nothing does."""
        first = self._agenda.top
        return None if first is None else first[0]

    def _is_current(self, entry: tuple[float, int, str]) -> bool:
        return self._due.get(entry[2]) == entry[1]

    def due(self) -> None:
        """Advance the engines whose next event is due."""
        while (first := self._agenda.top) is not None and first[0] <= self.now:
            self._agenda.pop()
            self.at(first[2])

    def settle(self) -> list[EngineReport]:
        """Let the engines go on that something happened at, and report the results.

        The caller tells the scheduler of them and calls again, until there are none.
        """
        reports = list[EngineReport]()
        for name in list(self._touched):
            engine = self.all[name]
            engine.transfer()
            engine.advance(self.now)
            if engine.finished:
                reports.append(
                    EngineReport(name, engine.finished, engine.preempted, engine.decoding)
                )
            elif engine.preempted or engine.spoke:
                said = [(w.step, engine.context(w)) for w in engine.spoke if w.left <= 0]
                reports.append(EngineReport(name, [], engine.preempted, said))
            else:
                continue
            engine.finished, engine.preempted, engine.spoke = [], [], []
        if not reports:
            for name in self._touched:
                self._plan(name)
            self._touched.clear()
        return reports

    def _plan(self, name: str) -> None:
        soon, number = self.all[name].next_event(), next(self._numbers)
        self._due[name] = number
        if soon is not None:
            self._agenda.push((max(soon, self.now), number, name))

    # --- from one to another --------------------------------------------------------------

    def move(self, source: str, conversation: str) -> tuple[list[int], float]:
        """Take a conversation's KV on its way to another engine.

        It takes a handshake and two copies, out of one device and into another.

        Returns:
            The numbers of its tokens, and when they arrive.
        """
        found = self.at(source).cache.block_locations(conversation)
        units = found[0] if found is not None else []
        tokens = len(units) * self._machine.unit
        self.moved += tokens
        return units, self.now + _HANDSHAKE + 2 * self._machine.cost.restore(tokens)

    def arrive(self, target: str, conversation: str, units: list[int]) -> None:
        """Put a conversation's KV into an engine's cache, as far as there is room."""
        self.at(target).cache.import_tokens(conversation, units, b"")


__all__ = ["EngineReport", "SimEngines"]
