"""Programs that wait for admission, in the policy's order."""

from collections.abc import Callable
from itertools import count
from typing import Any

from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.runtime.scheduler.lazy_heap import LazyHeap
from drawloom.runtime.scheduler.program_state import ProgramState, Rank
from drawloom.runtime.scheduler.tenants import Tenant, Tenants

Due = tuple[int, float, int, ProgramState]  # negative priority, due time, index
NewEntry = tuple[Rank, int, ProgramState]  # rank among the agent's new programs, index
RankEntry = tuple[Rank, int, int, int, ProgramState]  # rank, index, version, agent's programs


class TenantQueue:
    """Order the waiting programs of one tenant.

    Of an agent's new programs only the first is ranked among all others: the agent's history says
    the same of all of them, so that ranks are computed for few.
    """

    def __init__(
        self,
        wait_queue: "WaitQueue",
        tenant: Tenant,
        graph: Callable[[ProgramState], ExecutionGraph],
    ) -> None:
        self.tenant, self._wait_queue, self._graph = tenant, wait_queue, graph
        self.count = 0
        self._ranked = LazyHeap[RankEntry](self._is_last_rank)
        self._new: dict[str, LazyHeap[NewEntry]] = {}
        self._dues = LazyHeap[Due](self._is_last_due)

    def add(self, program: ProgramState, rank: Rank) -> None:
        """Add a program; `rank` orders the new ones of an agent."""
        self.count += 1
        program.queue = self
        if not program.was_admitted:
            self._add_new(program, rank)
        elif program.pending_steps:
            self._rank(program)
        self.track_due(program)

    def remove(self, program: ProgramState) -> None:
        """Remove a program."""
        was_first = self._is_first_new(program)
        self.count -= 1
        program.queue = None
        if was_first:
            self._rank_first_new(program.submission.agent)

    def rerank(self, program: ProgramState, rank: Rank) -> None:
        """Rank a program anew, since more is known of it."""
        if not program.was_admitted and rank != program.agent_rank:
            was_first = self._is_first_new(program)
            program.rank_version += was_first  # its rank among all others is stale
            self._add_new(program, rank)
            if was_first:
                self._rank_first_new(program.submission.agent)
        differs = program.was_admitted or self._graph(program).stats.states_informative
        if (differs or self._is_first_new(program)) and program.wants_admission:
            self._rank(program)

    def track_due(self, program: ProgramState) -> None:
        """Order a program by the time at which it becomes due, if it wants to be admitted."""
        if program.wants_admission:
            self._dues.push((*_urgency(program), program))

    @property
    def first(self) -> ProgramState | None:
        """Return the program with the least rank.

        Ranks may be out of date; the least one is computed again if programs of its agent have
        ended since.
        """
        while (entry := self._ranked.top) is not None:
            _, _, _, known, program = entry
            if known == self._graph(program).stats.programs:
                return program
            self._ranked.pop()
            self._rank(program)
        return None

    @property
    def rank(self) -> tuple[Rank, int, int] | None:
        """Return the least rank, with index and rank version of its program."""
        entry = None if self.first is None else self._ranked.top
        return None if entry is None else entry[:3]

    @property
    def due(self) -> ProgramState | None:
        """Return the program that becomes due first, of the highest priority."""
        while (item := self._dues.top) is not None:
            program = item[3]
            due_at = self._wait_queue.due_at(program)
            if due_at <= program.due_at:
                return program
            self._dues.pop()
            program.due_at = due_at  # programs of its agent turned out to take longer
            self.track_due(program)
        return None

    def _add_new(self, program: ProgramState, rank: Rank) -> None:
        program.agent_rank = rank
        agent = program.submission.agent
        if agent not in self._new:
            self._new[agent] = LazyHeap(self._is_waiting_new)
        self._new[agent].push((rank, program.index, program))
        if self._is_first_new(program):
            self._rank(program)

    def _rank(self, program: ProgramState) -> None:
        """Rank a program among all others; its earlier ranks become stale."""
        program.rank_version += 1
        rank, known = self._wait_queue.rank(program), self._graph(program).stats.programs
        self._ranked.push((rank, program.index, program.rank_version, known, program))

    def _rank_first_new(self, agent: str) -> None:
        queue = self._new.get(agent)
        first = None if queue is None else queue.top
        if first is None:
            self._new.pop(agent, None)
        else:
            self._rank(first[2])

    def _is_first_new(self, program: ProgramState) -> bool:
        queue = self._new.get(program.submission.agent)
        first = None if queue is None else queue.top
        return first is not None and first[2] is program

    def _is_last_due(self, item: Due) -> bool:
        program = item[3]
        return program.queue is self and program.wants_admission and item[1] == program.due_at

    def _is_waiting_new(self, entry: NewEntry) -> bool:
        program = entry[2]
        waits = program.queue is self and not program.was_admitted
        return waits and entry[0] == program.agent_rank

    def _is_last_rank(self, entry: RankEntry) -> bool:
        program = entry[4]
        waits = program.queue is self and program.wants_admission
        return waits and entry[2] == program.rank_version


class _QueueOrder:
    """Find the tenant queue with the least key.

    A queue must `enter` whenever its key may have become less. A queue without a key does not
    compete, and must enter again when it has one.

    Args:
        key: returns a queue's key; None if it has none.
    """

    def __init__(self, key: Callable[[TenantQueue], Any]) -> None:
        self._key = key
        self._entries = LazyHeap[tuple[Any, int, TenantQueue]](self._is_last)
        self._last: dict[TenantQueue, int] = {}
        self._numbers = count()

    def enter(self, queue: TenantQueue) -> None:
        """Order a queue by its present key."""
        key = self._key(queue)
        if key is not None:
            number = self._last[queue] = next(self._numbers)
            self._entries.push((key, number, queue))

    def leave(self, queue: TenantQueue) -> None:
        """Remove a queue."""
        self._last.pop(queue, None)

    def _is_last(self, entry: tuple[Any, int, TenantQueue]) -> bool:
        return self._last.get(entry[2]) == entry[1]

    @property
    def least(self) -> TenantQueue | None:
        """Return the queue with the least key; a key that has grown is looked up again."""
        while (entry := self._entries.top) is not None:
            key, _, queue = entry
            if self._key(queue) == key:
                return queue
            self._entries.pop()
            del self._last[queue]
            self.enter(queue)
        return None


class WaitQueue:
    """Order the waiting programs of all tenants.

    Programs of a tenant that is at its limits are passed over.

    Args:
        graph: returns the execution graph of a program's agent.
        tenants: of the programs.

    Attributes:
        rank: returns the policy's rank of a waiting program; the least is admitted first.
        due_at: returns when a waiting program becomes due, by what is known now.
        programs: the waiting programs, by name.
    """

    def __init__(self, graph: Callable[[ProgramState], ExecutionGraph], tenants: Tenants) -> None:
        self.rank: Callable[[ProgramState], Rank] = lambda program: (float(program.index),)
        self.due_at: Callable[[ProgramState], float] = lambda program: program.due_at
        self.programs: dict[str, ProgramState] = {}
        self._graph, self._tenants = graph, tenants
        self._queues: dict[str, TenantQueue] = {}
        self._by_rank = _QueueOrder(lambda queue: None if queue.tenant.full else queue.rank)
        self._by_due = _QueueOrder(_due)
        self._by_service = _QueueOrder(_service)
        self._orders = (self._by_rank, self._by_due, self._by_service)

    def add(self, program: ProgramState, rank: Rank) -> None:
        """Add a new or paused program; `rank` orders the new ones of an agent."""
        self.programs[program.id] = program
        queue = self._queues.get(program.submission.tenant)
        if queue is None:
            least = self.least_served
            self._tenants.on_first_waiting(
                program, None if least is None else least.tenant.attained
            )
            tenant = self._tenants.of(program)
            queue = TenantQueue(self, tenant, self._graph)
            self._queues[program.submission.tenant] = queue
        queue.add(program, rank)
        self._enter(queue)

    def remove(self, program: ProgramState) -> None:
        """Remove a program."""
        del self.programs[program.id]
        queue = self._queues[program.submission.tenant]
        queue.remove(program)
        if not queue.count:
            del self._queues[program.submission.tenant]
            for order in self._orders:
                order.leave(queue)

    def rerank(self, program: ProgramState, rank: Rank) -> None:
        """Rank a program anew, since more is known of it."""
        queue = self._queues[program.submission.tenant]
        queue.rerank(program, rank)
        self._enter(queue)

    def track_due(self, program: ProgramState) -> None:
        """Order a program by the time at which it becomes due, if it wants to be admitted."""
        queue = self._queues[program.submission.tenant]
        queue.track_due(program)
        self._by_due.enter(queue)

    def on_tenant_freed(self, tenant: str) -> None:
        """Let a tenant's programs compete again, since fewer of it run."""
        if (queue := self._queues.get(tenant)) is not None:
            self._enter(queue)

    def _enter(self, queue: TenantQueue) -> None:
        for order in self._orders:
            order.enter(queue)

    @property
    def first(self) -> ProgramState | None:
        """Return the program with the least rank."""
        queue = self._by_rank.least
        return None if queue is None else queue.first

    @property
    def due(self) -> ProgramState | None:
        """Return the program that becomes due first, of the highest priority."""
        queue = self._by_due.least
        return None if queue is None else queue.due

    @property
    def least_served(self) -> TenantQueue | None:
        """Return the queue of the tenant with the least attained service."""
        return self._by_service.least

    def ranked(self) -> list[ProgramState]:
        """Return all programs whose tenants are below their limits, by rank."""
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
