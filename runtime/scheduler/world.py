"""What the scheduler knows: programs, engines, environments and graphs."""

from collections import deque
from collections.abc import Iterator
from itertools import count
from math import inf

from drawloom.cost import CostModel
from drawloom.graph.execution import ExecutionGraph
from drawloom.runtime.scheduler.alone import Quickest
from drawloom.runtime.scheduler.held import Held
from drawloom.runtime.scheduler.load import Load
from drawloom.runtime.scheduler.places import Places
from drawloom.runtime.scheduler.program import Lineage, Program, Rank
from drawloom.runtime.scheduler.tenants import Tenants

_LEARN = 0.05


class World:
    """Kept by the core, read by policies. What several engines' worlds share, they have of the one
    that they are made `beside`: tenants, environments, graphs and the count of arrivals.

    Attributes:
        programs: all that are not over.
        active: those whose calls go to the engine, in the order in which they became so.
        held: the others.
        tenants: what each of them was given, and may have.
        tokens: of all conversations of active programs.
        own: of these, those that each has for itself.
        claimed: KV tokens that they were promised.
        resting: KV tokens that paused programs have for themselves.
        engines: KV tokens of each engine.
        host_tokens: KV tokens that fit into host memory behind the engines.
        places: where environments are.
        graphs: what is known of each agent.
        cost: what computing costs.
        quickest: what it costs where nothing else is computed.
        queued: seconds that the last calls waited at their engine.
        computing: active programs that have a call at an engine.
        calls: calls of active programs there.
        load: how busy the engines are.
        usual_jct: the mean seconds from submission to end of programs of any agent.
        ticked: when the policy's clock last ticked.
        pressed: calls that gave way to others at their engine, and have not said anything since.
    """

    def __init__(self, beside: "World | None" = None) -> None:
        self.arrivals: Iterator[int] = beside.arrivals if beside else count(1)
        self.tenants: Tenants = beside.tenants if beside else Tenants()
        self.places: Places = beside.places if beside else Places()
        self.graphs: dict[str, ExecutionGraph] = beside.graphs if beside else {}
        self.programs: dict[str, Program] = {}
        self.active: dict[str, Program] = {}
        self.held = Held(lambda program: self.graph(program.about.agent), self.tenants)
        self.tenants.watch(self.held.freed)
        self.tokens = self.own = self.claimed = self.resting = 0
        self.engines: dict[str, int] = {}
        self.host_tokens = 0
        self.cost, self.quickest = CostModel(), Quickest()
        self.queued: deque[float] = deque(maxlen=128)
        self.computing, self.calls, self.load = 0, 0, Load()
        self.usual_jct: float | None = None
        self.ticked = -1.0
        self.pressed: set[str] = set()
        self._passed = 0.0

    def pass_time(self, now: float) -> None:
        """Nothing has changed until `now`."""
        if now > self._passed:
            self.load.pass_time(now - self._passed, self.computing > 0)
        self._passed = now

    def start(self, program: Program, step: str, lineage: str) -> None:
        """A call of a program goes to its engine."""
        self.computing += program.active and not program.running
        self.calls += program.active
        program.running += 1
        program.started[step] = lineage

    def stop(self, program: Program, step: str) -> None:
        """It is over, or given up; nothing happens if it was not there."""
        if program.started.pop(step, None) is not None:
            self.pressed.discard(step)
            program.running -= 1
            self.calls -= program.active
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
        self.places.submit(program)
        self.tenants.submit(program)

    def hold(self, program: Program, order: Rank, now: float) -> None:
        """A program is new, or paused. New ones of one agent go by `order`."""
        if program.active:
            self._leave(program)
            program.claim = 0
        program.since = now
        if program.begun:
            self.resting += program.own
            self.places.hold(program)
        self.held.add(program, order)

    def ended_after(self, jct: float) -> None:
        """A program took so many seconds from its submission to its end."""
        usual = jct if self.usual_jct is None else self.usual_jct
        self.usual_jct = usual + _LEARN * (jct - usual)

    def activate(self, program: Program, now: float) -> None:
        """A held program's calls go to the engine from now on."""
        program.late = program.due <= now
        program.held += now - program.since
        program.due = inf
        self.places.activate(program)
        if program.begun:
            self.resting -= program.own
        else:
            program.admitted = now
        program.active, program.begun, program.marked = True, True, False
        self.held.remove(program)
        self.active[program.id] = program
        self.tenants.activate(program)
        self.computing += program.running > 0
        self.calls += program.running
        self.tokens += program.tokens
        self.own += program.own
        self.claimed += program.claim

    def _leave(self, program: Program) -> None:
        program.active = False
        del self.active[program.id]
        self.computing -= program.running > 0
        self.calls -= program.running
        self.places.deactivate(program)
        self.tenants.deactivate(program)
        self.tokens -= program.tokens
        self.own -= program.own
        self.claimed -= program.claim

    def reclaim(self, program: Program, claim: int) -> None:
        """Promise a program another number of KV tokens."""
        if program.active and claim != program.claim:
            self.claimed += claim - program.claim
            self.tenants.reclaim(program, claim - program.claim)
        program.claim = claim

    def resize(self, program: Program, lineage: Lineage, context: int, shared: int) -> None:
        """A conversation has so many tokens now, the first `shared` of them not for itself."""
        change, before = context - lineage.context, lineage.own
        lineage.context, lineage.shared = context, shared
        own = lineage.own - before
        program.tokens += change
        program.own += own
        program.peak = max(program.peak, program.own)
        if program.active:
            self.tokens += change
            self.own += own
        elif program.begun:
            self.resting += own

    def drop(self, program: Program, lineage: Lineage) -> None:
        """A conversation is over. What others go on from is, from now on, the own of the one that
        shares most of it, and the others share it with that."""
        heirs = [line for line in program.lineages.values() if line.parent == lineage.id]
        before = lineage.shared
        self.resize(program, lineage, 0, 0)
        if not heirs:
            return
        heir = max(heirs, key=lambda line: line.shared)
        for line in heirs:
            line.parent = heir.id
        heir.parent = lineage.parent
        self.resize(program, heir, heir.context or heir.shared, min(heir.shared, before))

    def end(self, program: Program) -> None:
        """A program is over."""
        del self.programs[program.id]
        self.pressed.difference_update(program.started)
        self.places.end(program)
        if program.active:
            self._leave(program)
        else:
            self.resting -= program.own if program.begun else 0
            self.held.remove(program)
        self.tenants.end(program)

    def withdraw(self, program: Program) -> None:
        """A program at a tool boundary goes to another world."""
        del self.programs[program.id]
        if program.active:
            self._leave(program)
            program.claim = 0
            return
        self.held.remove(program)
        if program.begun:
            self.resting -= program.own
            self.places.unhold(program)

    def accept(self, program: Program, order: Rank) -> None:
        """A program comes from another world; it is held until it is activated here."""
        self.programs[program.id] = program
        self.hold(program, order, program.since)

    def reconsider(self, program: Program, order: Rank) -> None:
        """What is known of a program has changed; a held one is ranked anew, for itself."""
        if not program.active:
            self.held.reconsider(program, order)


__all__ = ["World"]
