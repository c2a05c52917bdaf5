"""Programs that are held, before their admission or while paused, in the policy's order."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

from drawloom.graph.execution import ExecutionGraph
from drawloom.runtime.scheduler.program import Program, Rank
from drawloom.runtime.scheduler.tenants import Tenant, Tenants

_SLACK = 64


def _slim(heap: list[Any], counts: Callable[[Any], bool], there: int) -> None:
    """Drop entries that no longer count once they are most of a heap: what is withdrawn from its
    middle costs nothing for long."""
    if len(heap) > _SLACK + 4 * there:
        heap[:] = filter(counts, heap)
        heapq.heapify(heap)


class Lane:
    """The held programs of one tenant. Of an agent's new programs only the first competes with
    others: what the agent's history says is the same for all of them, so that ranks are computed
    for few."""

    def __init__(
        self, held: "Held", tenant: Tenant, graph: Callable[[Program], ExecutionGraph]
    ) -> None:
        self.tenant, self._held, self._graph = tenant, held, graph
        self.count = 0
        self._offers: list[tuple[Rank, int, int, int, Program]] = []
        self._new: dict[str, list[tuple[Rank, int, Program]]] = {}
        self._ages: list[tuple[int, Program]] = []
        self._fresh: list[tuple[int, Program]] = []

    def add(self, program: Program, order: Rank) -> None:
        self.count += 1
        program.lane = self
        if program.begun:
            self._offer(program)
        else:
            self._queue(program, order)
        heapq.heappush(self._ages, (program.index, program))
        _slim(self._ages, lambda item: self._waits(item[1]), self.count)
        if not program.begun:
            heapq.heappush(self._fresh, (program.index, program))
            _slim(self._fresh, lambda item: self._is_new(item[1]), self.count)

    def remove(self, program: Program) -> None:
        self.count -= 1
        program.lane = None
        if self._leads(program):
            self._offer_next(program.about.agent)

    def reconsider(self, program: Program, order: Rank) -> None:
        """What is known of a program has changed; it is ranked anew, for itself."""
        if not program.begun and order != program.order:
            led = self._leads(program)
            self._queue(program, order)
            if led:
                self._offer_next(program.about.agent)
        alone = self._graph(program).informed  # its state says more than its agent does
        if program.begun or alone or self._leads(program):
            self._offer(program)

    @property
    def first(self) -> Program | None:
        """The program of least rank. Ranks are as old as the offers, but for the least one, which
        is looked at again when its agent's history has grown."""
        while self._offers:
            _, _, _, known, program = self._offers[0]
            if not self._stands(self._offers[0]):
                heapq.heappop(self._offers)
            elif known != self._graph(program).programs:
                heapq.heappop(self._offers)
                self._offer(program)
            else:
                return program
        return None

    @property
    def rank(self) -> tuple[Rank, int, int] | None:
        """The least rank, of which program, and its offer."""
        return None if self.first is None else self._offers[0][:3]

    @property
    def oldest(self) -> Program | None:
        """The program that arrived first."""
        while self._ages:
            if self._waits(self._ages[0][1]):
                return self._ages[0][1]
            heapq.heappop(self._ages)
        return None

    @property
    def oldest_new(self) -> Program | None:
        """Of those that were never admitted, the one that arrived first."""
        while self._fresh:
            if self._is_new(self._fresh[0][1]):
                return self._fresh[0][1]
            heapq.heappop(self._fresh)
        return None

    def _queue(self, program: Program, order: Rank) -> None:
        """A new program waits among those of its agent, of which the first competes."""
        program.order = order
        queue = self._new.setdefault(program.about.agent, [])
        heapq.heappush(queue, (order, program.index, program))
        _slim(queue, self._first_choice, self.count)
        if queue[0][2] is program:
            self._offer(program)

    def _offer(self, program: Program) -> None:
        """Let a program compete by the rank that it has now; only its last offer counts."""
        program.offer += 1
        known = self._graph(program).programs
        item = (self._held.rank(program), program.index, program.offer, known, program)
        heapq.heappush(self._offers, item)
        _slim(self._offers, self._stands, self.count)

    def _offer_next(self, agent: str) -> None:
        queue = self._new.get(agent, [])
        while queue and not self._first_choice(queue[0]):
            heapq.heappop(queue)
        if queue:
            self._offer(queue[0][2])
        else:
            self._new.pop(agent, None)

    def _leads(self, program: Program) -> bool:
        queue = self._new.get(program.about.agent)
        return queue is not None and queue[0][2] is program

    def _waits(self, program: Program) -> bool:
        return program.lane is self

    def _is_new(self, program: Program) -> bool:
        return self._waits(program) and not program.begun

    def _first_choice(self, item: tuple[Rank, int, Program]) -> bool:
        """Whether it is what is now known of a program that waits."""
        return self._waits(item[2]) and item[0] == item[2].order

    def _stands(self, item: tuple[Rank, int, int, int, Program]) -> bool:
        """Whether it is a program's last offer."""
        return self._waits(item[4]) and item[2] == item[4].offer


class _Contest:
    """Which lane has the least key. A lane must `enter` whenever its key may have become less; one
    without a key does not compete, and has to enter again when it has one."""

    def __init__(self, key: Callable[[Lane], Any]) -> None:
        self._key = key
        self._entries: list[tuple[Any, int, Lane]] = []
        self._valid: dict[Lane, int] = {}
        self._numbers = count()

    def enter(self, lane: Lane) -> None:
        key = self._key(lane)
        if key is not None:
            number = self._valid[lane] = next(self._numbers)
            heapq.heappush(self._entries, (key, number, lane))
            _slim(self._entries, self._current, len(self._valid))

    def leave(self, lane: Lane) -> None:
        self._valid.pop(lane, None)

    def _current(self, entry: tuple[Any, int, Lane]) -> bool:
        return self._valid.get(entry[2]) == entry[1]

    @property
    def least(self) -> Lane | None:
        while self._entries:
            key, _, lane = self._entries[0]
            current = self._current(self._entries[0])
            if current and self._key(lane) == key:
                return lane
            heapq.heappop(self._entries)
            if current:
                del self._valid[lane]
                self.enter(lane)
        return None


class Held:
    """The held programs of all tenants. Those of a tenant that has all that it may have do not
    compete until it has less.

    Attributes:
        rank: the policy's order of held programs; the least is admitted first.
        programs: those that are held.
    """

    def __init__(self, graph: Callable[[Program], ExecutionGraph], tenants: Tenants) -> None:
        self.rank: Callable[[Program], Rank] = lambda program: (float(program.index),)
        self.programs: dict[str, Program] = {}
        self._graph, self._tenants = graph, tenants
        self._lanes: dict[str, Lane] = {}
        self._by_rank = _Contest(lambda lane: None if lane.tenant.full else lane.rank)
        self._by_age = _Contest(_age)
        self._by_new_age = _Contest(_new_age)
        self._by_service = _Contest(_service)
        self._contests = (self._by_rank, self._by_age, self._by_new_age, self._by_service)

    def add(self, program: Program, order: Rank) -> None:
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

    def remove(self, program: Program) -> None:
        """A program is admitted, or over."""
        del self.programs[program.id]
        lane = self._lanes[program.about.tenant]
        lane.remove(program)
        if not lane.count:
            del self._lanes[program.about.tenant]
            for contest in self._contests:
                contest.leave(lane)

    def reconsider(self, program: Program, order: Rank) -> None:
        """What is known of a held program has changed; it is ranked anew, for itself."""
        lane = self._lanes[program.about.tenant]
        lane.reconsider(program, order)
        self._by_rank.enter(lane)

    def freed(self, tenant: str) -> None:
        """A tenant has less than it had; its programs may compete again."""
        if (lane := self._lanes.get(tenant)) is not None:
            self._enter(lane)

    def _enter(self, lane: Lane) -> None:
        for contest in self._contests:
            contest.enter(lane)

    @property
    def first(self) -> Program | None:
        """The program of least rank."""
        lane = self._by_rank.least
        return None if lane is None else lane.first

    @property
    def oldest(self) -> Program | None:
        """The program that arrived first."""
        lane = self._by_age.least
        return None if lane is None else lane.oldest

    @property
    def oldest_new(self) -> Program | None:
        """Of those that were never admitted, the one that arrived first."""
        lane = self._by_new_age.least
        return None if lane is None else lane.oldest_new

    @property
    def neediest(self) -> Lane | None:
        """The programs of the tenant with the least service."""
        return self._by_service.least

    def ranked(self) -> list[Program]:
        """All whose tenants may have more, by rank."""
        free = (p for p in self.programs.values() if not self._tenants.of(p).full)
        return sorted(free, key=self.rank)


def _age(lane: Lane) -> int | None:
    oldest = None if lane.tenant.full else lane.oldest
    return None if oldest is None else oldest.index


def _new_age(lane: Lane) -> int | None:
    oldest = None if lane.tenant.full else lane.oldest_new
    return None if oldest is None else oldest.index


def _service(lane: Lane) -> float | None:
    return lane.tenant.attained if lane.count and not lane.tenant.full else None


__all__ = ["Held", "Lane"]
