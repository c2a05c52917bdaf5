"""Programs that are held, before their admission or while paused, in the policy's order."""

from collections.abc import Callable
from itertools import count
from typing import Any

from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.runtime.scheduler.lazy_heap import Heap
from drawloom.runtime.scheduler.program_state import ProgramState, Rank
from drawloom.runtime.scheduler.tenants import Tenant, Tenants

Due = tuple[int, float, int, ProgramState]  # priority, when it is due, index
Choice = tuple[Rank, int, ProgramState]  # its place among its agent's new ones
Offer = tuple[Rank, int, int, int, ProgramState]  # rank, index, offer, its agent's programs by then


class Lane:
    """The held programs of one tenant. Of an agent's new programs only the first competes with
    others: what the agent's history says is the same for all of them, so that ranks are computed
    for few."""

    def __init__(
        self, held: "Held", tenant: Tenant, graph: Callable[[ProgramState], ExecutionGraph]
    ) -> None:
        self.tenant, self._held, self._graph = tenant, held, graph
        self.count = 0
        self._offers = Heap[Offer](self._stands)
        self._new: dict[str, Heap[Choice]] = {}
        self._dues = Heap[Due](self._awaits)

    def add(self, program: ProgramState, order: Rank) -> None:
        self.count += 1
        program.lane = self
        if not program.begun:
            self._queue(program, order)
        elif program.ready:
            self._offer(program)
        self.wait(program)

    def remove(self, program: ProgramState) -> None:
        led = self._leads(program)
        self.count -= 1
        program.lane = None
        if led:
            self._offer_next(program.about.agent)

    def reconsider(self, program: ProgramState, order: Rank) -> None:
        """What is known of a program has changed; it is ranked anew, for itself."""
        if not program.begun and order != program.order:
            led = self._leads(program)
            program.offer += led  # what it was offered by is no longer so
            self._queue(program, order)
            if led:
                self._offer_next(program.about.agent)
        alone = self._graph(program).informed  # its state says more than its agent does
        if (program.begun or alone or self._leads(program)) and program.competes:
            self._offer(program)

    def wait(self, program: ProgramState) -> None:
        """A program may be held until it is due."""
        if program.competes:
            self._dues.push((*_urgency(program), program))

    @property
    def first(self) -> ProgramState | None:
        """The program of least rank. Ranks are as old as the offers, but for the least one, which
        is looked at again when its agent's history has grown."""
        while (offer := self._offers.least) is not None:
            _, _, _, known, program = offer
            if known == self._graph(program).programs:
                return program
            self._offers.pop()
            self._offer(program)
        return None

    @property
    def rank(self) -> tuple[Rank, int, int] | None:
        """The least rank, of which program, and its offer."""
        offer = None if self.first is None else self._offers.least
        return None if offer is None else offer[:3]

    @property
    def due(self) -> ProgramState | None:
        """Of the highest priority that competes, the program that is due first."""
        while (item := self._dues.least) is not None:
            program = item[3]
            due = self._held.due_at(program)
            if due <= program.due:
                return program
            self._dues.pop()
            program.due = due  # more is known of its like: they take longer
            self.wait(program)
        return None

    def _queue(self, program: ProgramState, order: Rank) -> None:
        """A new program waits among those of its agent, of which the first competes."""
        program.order = order
        queue = self._new.get(program.about.agent)
        if queue is None:
            queue = self._new[program.about.agent] = Heap(self._first_choice)
        queue.push((order, program.index, program))
        if self._leads(program):
            self._offer(program)

    def _offer(self, program: ProgramState) -> None:
        """Let a program compete by the rank that it has now; only its last offer counts."""
        program.offer += 1
        known = self._graph(program).programs
        self._offers.push((self._held.rank(program), program.index, program.offer, known, program))

    def _offer_next(self, agent: str) -> None:
        queue = self._new.get(agent)
        first = None if queue is None else queue.least
        if first is None:
            self._new.pop(agent, None)
        else:
            self._offer(first[2])

    def _leads(self, program: ProgramState) -> bool:
        queue = self._new.get(program.about.agent)
        first = None if queue is None else queue.least
        return first is not None and first[2] is program

    def _awaits(self, item: Due) -> bool:
        """Whether a program still competes, by when it is due now."""
        program = item[3]
        return program.lane is self and program.competes and item[1] == program.due

    def _first_choice(self, choice: Choice) -> bool:
        """Whether it is what is now known of a new program that waits."""
        program = choice[2]
        return program.lane is self and not program.begun and choice[0] == program.order

    def _stands(self, offer: Offer) -> bool:
        """Whether it is the last offer of a program that waits."""
        program = offer[4]
        return program.lane is self and program.competes and offer[2] == program.offer


class _Contest:
    """Which lane has the least key. A lane must `enter` whenever its key may have become less; one
    without a key does not compete, and has to enter again when it has one."""

    def __init__(self, key: Callable[[Lane], Any]) -> None:
        self._key = key
        self._entries = Heap[tuple[Any, int, Lane]](self._current)
        self._valid: dict[Lane, int] = {}
        self._numbers = count()

    def enter(self, lane: Lane) -> None:
        key = self._key(lane)
        if key is not None:
            number = self._valid[lane] = next(self._numbers)
            self._entries.push((key, number, lane))

    def leave(self, lane: Lane) -> None:
        self._valid.pop(lane, None)

    def _current(self, entry: tuple[Any, int, Lane]) -> bool:
        return self._valid.get(entry[2]) == entry[1]

    @property
    def least(self) -> Lane | None:
        while (entry := self._entries.least) is not None:
            key, _, lane = entry
            if self._key(lane) == key:
                return lane
            self._entries.pop()
            del self._valid[lane]
            self.enter(lane)
        return None


class Held:
    """The held programs of all tenants. Those of a tenant that has all that it may have do not
    compete until it has less.

    Attributes:
        rank: the policy's order of held programs; the least is admitted first.
        due_at: when a held program has been held for too long, by what is known now.
        programs: those that are held.
    """

    def __init__(self, graph: Callable[[ProgramState], ExecutionGraph], tenants: Tenants) -> None:
        self.rank: Callable[[ProgramState], Rank] = lambda program: (float(program.index),)
        self.due_at: Callable[[ProgramState], float] = lambda program: program.due
        self.programs: dict[str, ProgramState] = {}
        self._graph, self._tenants = graph, tenants
        self._lanes: dict[str, Lane] = {}
        self._by_rank = _Contest(lambda lane: None if lane.tenant.full else lane.rank)
        self._by_due = _Contest(_due)
        self._by_service = _Contest(_service)
        self._contests = (self._by_rank, self._by_due, self._by_service)

    def add(self, program: ProgramState, order: Rank) -> None:
        """A program is new, or paused. New ones of one agent go by `order`."""
        self.programs[program.id] = program
        lane = self._lanes.get(program.about.tenant)
        if lane is None:
            needy = self._by_service.least
            self._tenants.queues(program, None if needy is None else needy.tenant.attained)
            tenant = self._tenants.of(program)
            lane = self._lanes[program.about.tenant] = Lane(self, tenant, self._graph)
        lane.add(program, order)
        self._enter(lane)

    def remove(self, program: ProgramState) -> None:
        """A program is admitted, or over."""
        del self.programs[program.id]
        lane = self._lanes[program.about.tenant]
        lane.remove(program)
        if not lane.count:
            del self._lanes[program.about.tenant]
            for contest in self._contests:
                contest.leave(lane)

    def reconsider(self, program: ProgramState, order: Rank) -> None:
        """What is known of a held program has changed; it is ranked anew, for itself."""
        lane = self._lanes[program.about.tenant]
        lane.reconsider(program, order)
        self._enter(lane)

    def wait(self, program: ProgramState) -> None:
        """A held program may be held until it is due."""
        lane = self._lanes[program.about.tenant]
        lane.wait(program)
        self._by_due.enter(lane)

    def freed(self, tenant: str) -> None:
        """A tenant has less than it had; its programs may compete again."""
        if (lane := self._lanes.get(tenant)) is not None:
            self._enter(lane)

    def _enter(self, lane: Lane) -> None:
        for contest in self._contests:
            contest.enter(lane)

    @property
    def first(self) -> ProgramState | None:
        """The program of least rank."""
        lane = self._by_rank.least
        return None if lane is None else lane.first

    @property
    def due(self) -> ProgramState | None:
        """Of the highest priority that competes, the program that is due first."""
        lane = self._by_due.least
        return None if lane is None else lane.due

    @property
    def neediest(self) -> Lane | None:
        """The programs of the tenant with the least service."""
        return self._by_service.least

    def ranked(self) -> list[ProgramState]:
        """All whose tenants may have more, by rank."""
        free = (p for p in self.programs.values() if not self._tenants.of(p).full)
        return sorted(free, key=self.rank)


def _urgency(program: ProgramState) -> tuple[int, float, int]:
    return -program.about.priority, program.due, program.index


def _due(lane: Lane) -> tuple[int, float, int] | None:
    first = None if lane.tenant.full else lane.due
    return None if first is None else _urgency(first)


def _service(lane: Lane) -> float | None:
    waits = lane.first is not None and not lane.tenant.full
    return lane.tenant.attained if waits else None


__all__ = ["Held", "Lane"]
