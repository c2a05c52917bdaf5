"""Programs that are held, before their admission or while paused, in the policy's order."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from drawloom.graph.execution import ExecutionGraph
from drawloom.runtime.scheduler.program import Program, Rank


@dataclass(slots=True)
class Held:
    """Of an agent's new programs only the first competes with others: what the agent's history
    says is the same for all of them, so that ranks are computed for few.

    Attributes:
        graph: the execution graph of a program's agent.
        rank: the policy's order of held programs.
        programs: those that are held.
    """

    graph: Callable[[Program], ExecutionGraph]
    rank: Callable[[Program], Rank] = field(default=lambda program: (float(program.index),))
    programs: dict[str, Program] = field(default_factory=dict)
    _offers: list[tuple[Rank, int, int, int, Program]] = field(default_factory=list)
    _new: dict[str, list[tuple[Rank, int, Program]]] = field(default_factory=dict)
    _ages: list[tuple[int, Program]] = field(default_factory=list)

    def add(self, program: Program, order: Rank) -> None:
        """A program is new, or paused. New ones of one agent go by `order`."""
        self.programs[program.id] = program
        if program.begun:
            self._offer(program)
        else:
            self._queue(program, order)
        heapq.heappush(self._ages, (program.index, program))

    def remove(self, program: Program) -> None:
        """A program is admitted, or over."""
        del self.programs[program.id]
        if self._leads(program):
            self._offer_next(program.about.agent)

    def reconsider(self, program: Program, order: Rank) -> None:
        """What is known of a held program has changed; it is ranked anew, for itself."""
        if not program.begun and order != program.order:
            led = self._leads(program)
            self._queue(program, order)
            if led:
                self._offer_next(program.about.agent)
        alone = self.graph(program).informed  # its state says more than its agent does
        if program.begun or alone or self._leads(program):
            self._offer(program)

    @property
    def first(self) -> Program | None:
        """The program of least rank. Ranks are as old as the offers, but for the least one, which
        is looked at again when its agent's history has grown."""
        while self._offers:
            _, _, offer, known, program = self._offers[0]
            if not self._waits(program) or offer != program.offer:
                heapq.heappop(self._offers)
            elif known != self.graph(program).programs:
                heapq.heappop(self._offers)
                self._offer(program)
            else:
                return program
        return None

    @property
    def oldest(self) -> Program | None:
        """The program that arrived first."""
        while self._ages:
            if self._waits(self._ages[0][1]):
                return self._ages[0][1]
            heapq.heappop(self._ages)
        return None

    def ranked(self) -> list[Program]:
        """All of them, by rank."""
        return sorted(self.programs.values(), key=self.rank)

    def _queue(self, program: Program, order: Rank) -> None:
        """A new program waits among those of its agent, of which the first competes."""
        program.order = order
        queue = self._new.setdefault(program.about.agent, [])
        heapq.heappush(queue, (order, program.index, program))
        if queue[0][2] is program:
            self._offer(program)

    def _offer(self, program: Program) -> None:
        """Let a program compete by the rank that it has now; only its last offer counts."""
        program.offer += 1
        known = self.graph(program).programs
        item = (self.rank(program), program.index, program.offer, known, program)
        heapq.heappush(self._offers, item)

    def _offer_next(self, agent: str) -> None:
        queue = self._new.get(agent, [])
        while queue and not (self._waits(queue[0][2]) and queue[0][0] == queue[0][2].order):
            heapq.heappop(queue)
        if queue:
            self._offer(queue[0][2])
        else:
            self._new.pop(agent, None)

    def _leads(self, program: Program) -> bool:
        queue = self._new.get(program.about.agent)
        return queue is not None and queue[0][2] is program

    def _waits(self, program: Program) -> bool:
        return self.programs.get(program.id) is program


__all__ = ["Held"]
