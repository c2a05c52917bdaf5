"""What the scheduler knows: programs, their conversations, engines, hosts and graphs."""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import exp

from drawloom.cost import CostModel
from drawloom.events import HostState, ProgramSubmitted, StepReady
from drawloom.graph.execution import START, ExecutionGraph
from drawloom.graph.forecast import Forecast

Rank = tuple[float, ...]
_DUTY, _MINUTES = 0.75, 120.0


@dataclass(slots=True)
class Lineage:
    """A conversation. `waiting` names the tools it waits for, `since` when it began to, `forecast`
    what was expected then; it is leased `until` then. Of its `context`, the first `shared` tokens
    are in the cache for others as well."""

    id: str
    engine: str
    state: str = START
    context: int = 0
    shared: int = 0
    waiting: str | None = None
    forecast: Forecast | None = None
    since: float = 0.0
    until: float = 0.0


@dataclass(slots=True, eq=False)
class Program:
    """A program from submission to end.

    Attributes:
        active: its calls go to the engine; else they are held, before admission or while paused.
        begun: it was active at some time.
        tokens: of all its live conversations.
        own: of these, those that no other program has as well.
        claim: KV tokens that its admission reserved.
        ready: calls that are held.
        running: calls at the engine.
        started: these, and the conversation of each.
        service: seconds that its calls have had there.
        since: when it became held, or ran out of calls.
        admitted: when it first became active.
        marked: to be paused as soon as it is at a tool boundary.
        order: its place among its agent's new programs.
        host: where it has room for its environments, from its first call on.
        offer: how often it was ranked among the held; the last rank counts.
        cost: what the policy last found its end to cost.
        expected: LLM calls in all, by what it declared last; None if it did not.
        trail: at the end of each call, the service so far and the service that was expected to
            follow it.
    """

    about: ProgramSubmitted
    index: int
    submitted: float
    active: bool = False
    begun: bool = False
    peak: int = 0
    tokens: int = 0
    own: int = 0
    claim: int = 0
    running: int = 0
    steps: int = 0
    service: float = 0.0
    since: float = 0.0
    admitted: float = 0.0
    ready: list[StepReady] = field(default_factory=list)
    started: dict[str, str] = field(default_factory=dict)
    marked: bool = False
    order: Rank = ()
    host: str | None = None
    offer: int = 0
    cost: float = 0.0
    expected: float | None = None
    trail: list[tuple[float, float]] = field(default_factory=list)
    lineages: dict[str, Lineage] = field(default_factory=dict)
    envs: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        return self.about.program

    @property
    def acting(self) -> bool:
        """Whether none of its calls is at the engine or on its way there: a tool boundary."""
        return not self.running and not self.ready

    @property
    def idle(self) -> bool:
        """Whether it has nothing at an engine, and no conversation waits for a tool."""
        return not self.running and all(line.waiting is None for line in self.lineages.values())

    @property
    def places(self) -> Iterator[tuple[str, bool]]:
        """The states of its conversations, and whether the call there has ended."""
        return ((line.state, line.waiting is not None) for line in self.lineages.values())

    def lacks(self, env: str) -> bool:
        """Whether it may still ask for an environment of this key."""
        return env in self.about.envs and env not in self.envs


@dataclass(slots=True)
class World:
    """Kept by the core, read by policies.

    Attributes:
        active: programs whose calls go to the engine, in the order in which they became so.
        tokens: of all conversations of these.
        own: of these, those that each has for itself.
        claimed: KV tokens that they were promised.
        resting: KV tokens that paused programs have for themselves.
        host_tokens: KV tokens that fit into host memory behind the engines.
        queued: seconds that the last calls waited at their engine.
        computing: active programs that have a call at an engine.
        duty: the share of active programs that compute, over the last minutes.
        ticked: when the policy's clock last ticked.
        boundary: the program of which a call has just ended.
        rank: the policy's order of held programs.
        slots: the environments that fit on each host; only of hosts that have a limit.
        housed: what takes room on each of these hosts.
        parks: those of them that can put an environment aside.
        leaving: held programs whose environments will be put aside.
        wanted: live programs that lack an environment, by its key.
        promised: of these, the active ones.
    """

    programs: dict[str, Program] = field(default_factory=dict)
    active: dict[str, Program] = field(default_factory=dict)
    tokens: int = 0
    own: int = 0
    claimed: int = 0
    resting: int = 0
    engines: dict[str, int] = field(default_factory=dict)
    host_tokens: int = 0
    hosts: dict[str, HostState] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    housed: dict[str, int] = field(default_factory=dict)
    parks: set[str] = field(default_factory=set)
    leaving: int = 0
    graphs: dict[str, ExecutionGraph] = field(default_factory=dict)
    cost: CostModel = field(default_factory=CostModel)
    queued: deque[float] = field(default_factory=lambda: deque(maxlen=128))
    computing: int = 0
    duty: float = _DUTY
    ticked: float = -1.0
    boundary: Program | None = None
    rank: Callable[[Program], Rank] = field(default=lambda program: _by_arrival(program))
    wanted: dict[str, int] = field(default_factory=dict)
    promised: dict[str, int] = field(default_factory=dict)
    _passed: float = 0.0
    _offers: list[tuple[Rank, int, int, int, Program]] = field(default_factory=list)
    _new: dict[str, list[tuple[Rank, int, Program]]] = field(default_factory=dict)
    _ages: list[tuple[int, Program]] = field(default_factory=list)

    def pass_time(self, now: float) -> None:
        """Nothing has changed until `now`."""
        if self.active:
            fade = exp(-(now - self._passed) / _MINUTES)
            self.duty += (1 - fade) * (self.computing / len(self.active) - self.duty)
        self._passed = now

    def start(self, program: Program, step: str, lineage: str) -> None:
        """A call of a program goes to its engine."""
        self.computing += program.active and not program.running
        program.running += 1
        program.started[step] = lineage

    def stop(self, program: Program, step: str) -> None:
        """It is over, or given up; nothing happens if it was not there."""
        if program.started.pop(step, None) is not None:
            program.running -= 1
            self.computing -= program.active and not program.running

    @property
    def capacity(self) -> int:
        """KV tokens of all engines."""
        return sum(self.engines.values())

    def graph(self, agent: str) -> ExecutionGraph:
        found = self.graphs.get(agent)
        if found is None:
            found = self.graphs[agent] = ExecutionGraph(agent)
        return found

    def step_seconds(self, graph: ExecutionGraph) -> float:
        """Seconds of service of an LLM call of an agent; of all agents while it is young."""
        if graph.step_seconds:
            return graph.step_seconds
        known = [other.step_seconds for other in self.graphs.values() if other.step_seconds]
        return sum(known) / len(known) if known else 1.0

    # --- who is held, who is active -------------------------------------------------------

    def submit(self, program: Program) -> None:
        """A program is new; it is held from now on."""
        self.programs[program.id] = program
        for env in program.about.envs:
            self.wanted[env] = self.wanted.get(env, 0) + 1

    def hold(self, program: Program, order: Rank, now: float) -> None:
        """A program is new, or paused. New ones of one agent go by `order`."""
        if program.active:
            self._leave(program)
            program.claim = 0
        program.since = now
        if program.begun:
            self.resting += program.own
            self.leaving += self._goes(program)
            self._offer(program)
        else:
            self._queue(program, order)
        heapq.heappush(self._ages, (program.index, program))

    def _queue(self, program: Program, order: Rank) -> None:
        """A new program waits among those of its agent, of which the first competes."""
        program.order = order
        queue = self._new.setdefault(program.about.agent, [])
        heapq.heappush(queue, (order, program.index, program))
        if queue[0][2] is program:
            self._offer(program)

    def _offer(self, program: Program) -> None:
        """Let a held program compete by the rank that it has now; only its last offer counts."""
        program.offer += 1
        known = self.graph(program.about.agent).programs
        item = (self.rank(program), program.index, program.offer, known, program)
        heapq.heappush(self._offers, item)

    def _offer_next(self, agent: str) -> None:
        """Of an agent's new programs only the first competes: what the agent's history says is the
        same for all of them."""
        queue = self._new.get(agent, [])
        while queue and not (self._waits(queue[0][2]) and queue[0][0] == queue[0][2].order):
            heapq.heappop(queue)
        if queue:
            self._offer(queue[0][2])
        else:
            self._new.pop(agent, None)

    @property
    def roomiest(self) -> str | None:
        """The limited host with the most room left, should it be none or less."""
        return max(self.slots, key=self.room, default=None)

    def room(self, host: str) -> int:
        """The environments that still fit on a limited host."""
        return self.slots[host] - self.housed.get(host, 0)

    def _house(self, program: Program) -> None:
        if program.about.envs and program.host is None and (host := self.roomiest) is not None:
            program.host = host
            self.housed[host] = self.housed.get(host, 0) + len(program.about.envs)

    def park(self, program: Program) -> str | None:
        """Where a held program's environments can be put aside now, if anywhere; they no longer
        take room there."""
        host = program.host
        if not self._goes(program) or not program.idle:
            return None
        self._leave_host(program)
        for env in program.envs:
            self.wanted[env] = self.wanted.get(env, 0) + 1
        program.envs.clear()
        return host

    def _leave_host(self, program: Program) -> None:
        if program.host is not None:
            self.housed[program.host] -= len(program.about.envs)
            self.leaving -= self._goes(program)
            program.host = None

    def _goes(self, program: Program) -> bool:
        return program.host in self.parks and program.begun and not program.active

    def activate(self, program: Program, now: float) -> None:
        self.leaving -= self._goes(program)
        self._house(program)
        if program.begun:
            self.resting -= program.own
        else:
            program.admitted = now
        program.active, program.begun, program.marked = True, True, False
        self._no_longer_held(program)
        self.active[program.id] = program
        self.computing += program.running > 0
        for env in program.about.envs:
            if env not in program.envs:
                self.promised[env] = self.promised.get(env, 0) + 1
        self.tokens += program.tokens
        self.own += program.own
        self.claimed += program.claim

    def _no_longer_held(self, program: Program) -> None:
        if self._leads(program):
            self._offer_next(program.about.agent)

    def _leave(self, program: Program) -> None:
        program.active = False
        del self.active[program.id]
        self.computing -= program.running > 0
        for env in program.about.envs:
            if env not in program.envs:
                _one_less(self.promised, env)
        self.tokens -= program.tokens
        self.own -= program.own
        self.claimed -= program.claim

    def reclaim(self, program: Program, claim: int) -> None:
        """Promise a program another number of KV tokens."""
        if program.active:
            self.claimed += claim - program.claim
        program.claim = claim

    def resize(self, program: Program, lineage: Lineage, context: int, shared: int) -> None:
        """A conversation has so many tokens now, the first `shared` of them not for itself."""
        change, own = context - lineage.context, (context - shared)
        own -= lineage.context - lineage.shared
        lineage.context, lineage.shared = context, shared
        program.tokens += change
        program.own += own
        program.peak = max(program.peak, program.own)
        if program.active:
            self.tokens += change
            self.own += own
        elif program.begun:
            self.resting += own

    def took(self, program: Program, env: str) -> None:
        """A program has its environment of this key; its host has one ready less."""
        if program.lacks(env):
            _one_less(self.wanted, env)
            if program.active:
                _one_less(self.promised, env)
        program.envs.add(env)
        host = self.hosts.get(env)
        if host is not None:
            self.hosts[env] = replace(host, warm=max(0, host.warm - 1))

    def end(self, program: Program) -> None:
        del self.programs[program.id]
        self._leave_host(program)
        for env in program.about.envs:
            if env not in program.envs:
                _one_less(self.wanted, env)
        if program.active:
            self._leave(program)
        else:
            self.resting -= program.own if program.begun else 0
            self._no_longer_held(program)

    def reconsider(self, program: Program, order: Rank) -> None:
        """What is known of a program has changed; a held one is ranked anew, for itself."""
        if program.active:
            return
        if not program.begun and order != program.order:
            led = self._leads(program)
            self._queue(program, order)
            if led:
                self._offer_next(program.about.agent)
        alone = self.graph(program.about.agent).informed  # its state says more than its agent does
        if program.begun or alone or self._leads(program):
            self._offer(program)

    def _leads(self, program: Program) -> bool:
        queue = self._new.get(program.about.agent)
        return queue is not None and queue[0][2] is program

    @property
    def first(self) -> Program | None:
        """The held program of least rank. Ranks are as old as the offers, but for the least one,
        which is looked at again when its agent's history has grown."""
        while self._offers:
            _, _, offer, known, program = self._offers[0]
            if not self._waits(program) or offer != program.offer:
                heapq.heappop(self._offers)
            elif known != self.graph(program.about.agent).programs:
                heapq.heappop(self._offers)
                self._offer(program)
            else:
                return program
        return None

    @property
    def oldest(self) -> Program | None:
        """The held program that arrived first."""
        while self._ages:
            if self._waits(self._ages[0][1]):
                return self._ages[0][1]
            heapq.heappop(self._ages)
        return None

    def _waits(self, program: Program) -> bool:
        return not program.active and self.programs.get(program.id) is program

    def held(self) -> list[Program]:
        """All held programs, by rank."""
        return sorted((p for p in self.programs.values() if not p.active), key=self.rank)


def _one_less(counts: dict[str, int], key: str) -> None:
    """Keys leave with their last one, so that what ended costs nothing."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _by_arrival(program: Program) -> Rank:
    return (float(program.index),)


__all__ = ["Lineage", "Program", "Rank", "World"]
