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
Offer = tuple[Rank, int, int, int, ProgramState]  # rank, index, entry, its agent's programs by then


class TenantQueue:
    """The held programs of one tenant. Of an agent's new programs only the first competes with
    others: what the agent's history says is the same for all of them, so that ranks are computed
    for few."""

    def __init__(
        self,
        wait_queue: "WaitQueue",
        tenant: Tenant,
        graph: Callable[[ProgramState], ExecutionGraph],
    ) -> None:
        self.tenant, self._wait_queue, self._graph = tenant, wait_queue, graph
        self.count = 0
        self._offers = Heap[Offer](self._is_current_rank)
        self._new: dict[str, Heap[Choice]] = {}
        self._dues = Heap[Due](self._is_current_due)

    def add(self, program: ProgramState, order: Rank) -> None:
        self.count += 1
        program.queue = self
        if not program.begun:
            self._queue(program, order)
        elif program.pending_steps:
            self._push_rank(program)
        self.wait(program)

    def remove(self, program: ProgramState) -> None:
        led = self._is_first_new(program)
        self.count -= 1
        program.queue = None
        if led:
            self._push_next_new(program.submission.agent)

    def rerank(self, program: ProgramState, order: Rank) -> None:
        """What is known of a program has changed; it is ranked anew, for itself."""
        if not program.begun and order != program.agent_rank:
            led = self._is_first_new(program)
            program.rank_version += led  # what it was offered by is no longer so
            self._queue(program, order)
            if led:
                self._push_next_new(program.submission.agent)
        alone = self._graph(
            program
        ).stats.states_informative  # its state says more than its agent does
        if (program.begun or alone or self._is_first_new(program)) and program.wants_admission:
            self._push_rank(program)

    def wait(self, program: ProgramState) -> None:
        """A program may be held until it is due."""
        if program.wants_admission:
            self._dues.push((*_urgency(program), program))

    @property
    def first(self) -> ProgramState | None:
        """The program of least rank. Ranks are as old as the offers, but for the least one, which
        is looked at again when its agent's history has grown."""
        while (entry := self._offers.least) is not None:
            _, _, _, known, program = entry
            if known == self._graph(program).stats.programs:
                return program
            self._offers.pop()
            self._push_rank(program)
        return None

    @property
    def rank(self) -> tuple[Rank, int, int] | None:
        """The least rank, of which program, and its entry."""
        entry = None if self.first is None else self._offers.least
        return None if entry is None else entry[:3]

    @property
    def due(self) -> ProgramState | None:
        """Of the highest priority that competes, the program that is due first."""
        while (item := self._dues.least) is not None:
            program = item[3]
            due = self._wait_queue.due_at(program)
            if due <= program.due_at:
                return program
            self._dues.pop()
            program.due_at = due  # more is known of its like: they take longer
            self.wait(program)
        return None

    def _queue(self, program: ProgramState, order: Rank) -> None:
        """A new program waits among those of its agent, of which the first competes."""
        program.agent_rank = order
        queue = self._new.get(program.submission.agent)
        if queue is None:
            queue = self._new[program.submission.agent] = Heap(self._is_waiting_new)
        queue.push((order, program.index, program))
        if self._is_first_new(program):
            self._push_rank(program)

    def _push_rank(self, program: ProgramState) -> None:
        """Let a program compete by the rank that it has now; only its last entry counts."""
        program.rank_version += 1
        known = self._graph(program).stats.programs
        self._offers.push(
            (self._wait_queue.rank(program), program.index, program.rank_version, known, program)
        )

    def _push_next_new(self, agent: str) -> None:
        queue = self._new.get(agent)
        first = None if queue is None else queue.least
        if first is None:
            self._new.pop(agent, None)
        else:
            self._push_rank(first[2])

    def _is_first_new(self, program: ProgramState) -> bool:
        queue = self._new.get(program.submission.agent)
        first = None if queue is None else queue.least
        return first is not None and first[2] is program

    def _is_current_due(self, item: Due) -> bool:
        """Whether a program still competes, by when it is due now."""
        program = item[3]
        return program.queue is self and program.wants_admission and item[1] == program.due_at

    def _is_waiting_new(self, choice: Choice) -> bool:
        """Whether it is what is now known of a new program that waits."""
        program = choice[2]
        return program.queue is self and not program.begun and choice[0] == program.agent_rank

    def _is_current_rank(self, entry: Offer) -> bool:
        """Whether it is the last entry of a program that waits."""
        program = entry[4]
        return (
            program.queue is self and program.wants_admission and entry[2] == program.rank_version
        )


class _QueueHeap:
    """Find the queue with the least key.

    A queue must `enter` whenever its key may have become less; one without a key does not compete,
    and has to enter again when it has one.
    """

    def __init__(self, key: Callable[[TenantQueue], Any]) -> None:
        self._key = key
        self._entries = Heap[tuple[Any, int, TenantQueue]](self._current)
        self._valid: dict[TenantQueue, int] = {}
        self._numbers = count()

    def enter(self, queue: TenantQueue) -> None:
        key = self._key(queue)
        if key is not None:
            number = self._valid[queue] = next(self._numbers)
            self._entries.push((key, number, queue))

    def leave(self, queue: TenantQueue) -> None:
        self._valid.pop(queue, None)

    def _current(self, entry: tuple[Any, int, TenantQueue]) -> bool:
        return self._valid.get(entry[2]) == entry[1]

    @property
    def least(self) -> TenantQueue | None:
        while (entry := self._entries.least) is not None:
            key, _, queue = entry
            if self._key(queue) == key:
                return queue
            self._entries.pop()
            del self._valid[queue]
            self.enter(queue)
        return None


class WaitQueue:
    """The held programs of all tenants. Those of a tenant that has all that it may have do not
    compete until it has less.

    Attributes:
        rank: the policy's order of held programs; the least is admitted first.
        due_at: when a held program has been held for too long, by what is known now.
        programs: those that are held.
    """

    def __init__(self, graph: Callable[[ProgramState], ExecutionGraph], tenants: Tenants) -> None:
        self.rank: Callable[[ProgramState], Rank] = lambda program: (float(program.index),)
        self.due_at: Callable[[ProgramState], float] = lambda program: program.due_at
        self.programs: dict[str, ProgramState] = {}
        self._graph, self._tenants = graph, tenants
        self._queues: dict[str, TenantQueue] = {}
        self._by_rank = _QueueHeap(lambda queue: None if queue.tenant.full else queue.rank)
        self._by_due = _QueueHeap(_due)
        self._by_service = _QueueHeap(_service)
        self._heaps = (self._by_rank, self._by_due, self._by_service)

    def add(self, program: ProgramState, order: Rank) -> None:
        """A program is new, or paused. New ones of one agent go by `order`."""
        self.programs[program.id] = program
        queue = self._queues.get(program.submission.tenant)
        if queue is None:
            needy = self._by_service.least
            self._tenants.on_first_waiting(
                program, None if needy is None else needy.tenant.attained
            )
            tenant = self._tenants.of(program)
            queue = self._queues[program.submission.tenant] = TenantQueue(self, tenant, self._graph)
        queue.add(program, order)
        self._enter(queue)

    def remove(self, program: ProgramState) -> None:
        """A program is admitted, or over."""
        del self.programs[program.id]
        queue = self._queues[program.submission.tenant]
        queue.remove(program)
        if not queue.count:
            del self._queues[program.submission.tenant]
            for heap in self._heaps:
                heap.leave(queue)

    def rerank(self, program: ProgramState, order: Rank) -> None:
        """What is known of a held program has changed; it is ranked anew, for itself."""
        queue = self._queues[program.submission.tenant]
        queue.rerank(program, order)
        self._enter(queue)

    def wait(self, program: ProgramState) -> None:
        """A held program may be held until it is due."""
        queue = self._queues[program.submission.tenant]
        queue.wait(program)
        self._by_due.enter(queue)

    def freed(self, tenant: str) -> None:
        """A tenant has less than it had; its programs may compete again."""
        if (queue := self._queues.get(tenant)) is not None:
            self._enter(queue)

    def _enter(self, queue: TenantQueue) -> None:
        for heap in self._heaps:
            heap.enter(queue)

    @property
    def first(self) -> ProgramState | None:
        """The program of least rank."""
        queue = self._by_rank.least
        return None if queue is None else queue.first

    @property
    def due(self) -> ProgramState | None:
        """Of the highest priority that competes, the program that is due first."""
        queue = self._by_due.least
        return None if queue is None else queue.due

    @property
    def least_served(self) -> TenantQueue | None:
        """The programs of the tenant with the least service."""
        return self._by_service.least

    def ranked(self) -> list[ProgramState]:
        """All whose tenants may have more, by rank."""
        free = (p for p in self.programs.values() if not self._tenants.of(p).full)
        return sorted(free, key=self.rank)


def _urgency(program: ProgramState) -> tuple[int, float, int]:
    return -program.submission.priority, program.due_at, program.index


def _due(queue: TenantQueue) -> tuple[int, float, int] | None:
    first = None if queue.tenant.full else queue.due
    return None if first is None else _urgency(first)


def _service(queue: TenantQueue) -> float | None:
    waits = queue.first is not None and not queue.tenant.full
    return queue.tenant.attained if waits else None


__all__ = ["TenantQueue", "WaitQueue"]
