"""What the scheduler knows: programs, engines, environments and graphs."""

from collections import deque
from collections.abc import Iterator
from itertools import count
from math import inf

from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.runtime.scheduler.agent_graphs import Agents
from drawloom.runtime.scheduler.branches import Branches
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.engine_load import Load
from drawloom.runtime.scheduler.env_capacity import EnvCapacity
from drawloom.runtime.scheduler.events import EngineLoad, StepReady
from drawloom.runtime.scheduler.learned_cost import LearnedCost
from drawloom.runtime.scheduler.program_state import ConversationState, ProgramState, Rank
from drawloom.runtime.scheduler.tenants import Tenants
from drawloom.runtime.scheduler.wait_queue import WaitQueue

_LEARN = 0.05


class SchedulerState:
    """Kept by the core, read by policies. What several engines' states share, they have of the one
    that they are made `shared_with`: tenants, environments, graphs and the count of arrivals.

    Attributes:
        programs: all that are not over.
        active: those whose calls go to the engine, in the order in which they became so.
        held: the others.
        tenants: what each of them was given, and may have.
        tokens: of all conversations of active programs.
        own: of these, those that each has for itself.
        claimed: KV tokens that they were promised.
        paused_tokens: KV tokens that paused programs have for themselves, if they were not lost.
        engines: KV tokens of each engine that is up.
        draining: engines of these that take no more.
        loads: what each of these said last of its load.
        capacity: KV tokens of all of them.
        host_tokens: KV tokens that fit into host memory behind them.
        peers: the active programs of each agent.
        places: where environments are.
        graphs: what is known of each agent.
        queued: seconds that the last calls waited at their engine.
        computing: active programs that have a call at an engine.
        calls: calls of active programs there.
        starting: active programs that have not made a call yet.
        load: how busy the engines are.
        idle: for how many seconds no call has been there.
        usual_jct: the mean seconds from submission to end of programs of any agent.
        ticked: when the policy's clock last ticked.
        pressed: calls that gave way to others at their engine, and have not said anything since.
    """

    def __init__(self, shared_with: "SchedulerState | None" = None) -> None:
        self.arrivals: Iterator[int] = shared_with.arrivals if shared_with else count(1)
        self.tenants: Tenants = shared_with.tenants if shared_with else Tenants()
        self.env_capacity: EnvCapacity = shared_with.env_capacity if shared_with else EnvCapacity()
        self.graphs: Agents = shared_with.graphs if shared_with else Agents()
        self.programs: dict[str, ProgramState] = {}
        self.active: dict[str, ProgramState] = {}
        self.wait_queue = WaitQueue(
            lambda program: self.graph(program.submission.agent), self.tenants
        )
        self.tenants.watch(self.wait_queue.freed)
        self.tokens = self.private_tokens = self.reserved_tokens = self.paused_tokens = 0
        self.active_by_agent: dict[str, dict[str, ProgramState]] = {}
        self.engines: dict[str, int] = {}
        self.draining: set[str] = set()
        self.loads: dict[str, EngineLoad] = {}
        self._hosts: dict[str, int] = {}
        self.capacity = self.host_tokens = 0
        self._cost: CostModel | None = shared_with._cost if shared_with else None
        self.learned = LearnedCost()
        self.queue_seconds: deque[float] = deque(maxlen=128)
        self.computing_programs, self.running_calls, self.engine_load = 0, 0, Load()
        self.starting_programs = 0
        self.usual_jct: float | None = None
        self.last_tick = -1.0
        self.preempted_steps: set[str] = set()
        self._passed = self.idle_seconds = 0.0

    def pass_time(self, now: float) -> None:
        """Nothing has changed until `now`."""
        if now > self._passed:
            self.engine_load.pass_time(now - self._passed, self.computing_programs > 0)
            self.idle_seconds = (
                0.0 if self.computing_programs else self.idle_seconds + now - self._passed
            )
        self._passed = now

    # --- engines and what they cost -------------------------------------------------------

    def up(self, engine: str, tokens: int, host_tokens: int) -> None:
        """Count an engine, as it is from now on."""
        self.engines[engine], self._hosts[engine] = tokens, host_tokens
        self.draining.discard(engine)
        self._sum()

    def down(self, engine: str) -> None:
        """Count an engine no more."""
        del self.engines[engine], self._hosts[engine]
        self.draining.discard(engine)
        self.loads.pop(engine, None)
        self._sum()

    def _sum(self) -> None:
        self.capacity, self.host_tokens = sum(self.engines.values()), sum(self._hosts.values())

    @property
    def closed(self) -> bool:
        """Whether no engine takes any program: all that there were are down or drain."""
        return len(self.draining) == len(self.engines)

    @property
    def cost(self) -> CostModel:
        """What computing costs: as it was given, else as it was learned from calls."""
        return self.learned.model if self._cost is None else self._cost

    @cost.setter
    def cost(self, cost: CostModel) -> None:
        self._cost = cost

    def graph(self, agent: str) -> ExecutionGraph:
        """Return what is known of an agent."""
        return self.graphs[agent]

    def step_seconds(self, graph: ExecutionGraph) -> float:
        """Return the seconds of service of an LLM call of an agent; of all agents while it is
        young."""
        return graph.stats.step_seconds or self.graphs.step_seconds or 1.0

    # --- calls ----------------------------------------------------------------------------

    def start(self, program: ProgramState, step: StepReady) -> None:
        """A call of a program goes to its engine."""
        self.computing_programs += program.active and not program.running
        self.running_calls += program.active
        program.running += 1
        program.absent_at = inf
        program.running_steps[step.step] = step

    def stop(self, program: ProgramState, name: str) -> StepReady | None:
        """A call is over, or given up; return it if it was there."""
        step = program.running_steps.pop(name, None)
        if step is not None:
            self.preempted_steps.discard(name)
            program.running -= 1
            self.running_calls -= program.active
            self.computing_programs -= program.active and not program.running
            if not program.running:
                program.growth_threshold = inf
        return step

    # --- who is held, who is active -------------------------------------------------------

    def submit(self, program: ProgramState) -> None:
        """A program is new; it is held from now on."""
        self.programs[program.id] = program
        self.graphs.enter(program.submission.agent)
        self.env_capacity.submit(program)
        self.tenants.submit(program)

    def hold(self, program: ProgramState, order: Rank, now: float) -> None:
        """A program is new, or paused. New ones of one agent go by `order`."""
        if program.active:
            self._leave(program)
            program.reserved_tokens = 0
        program.waiting_since = now
        self.paused_tokens += self._rests(program)
        if program.begun:
            self.env_capacity.hold(program)
        self.wait_queue.add(program, order)

    def _rests(self, program: ProgramState) -> int:
        """Return the KV tokens that a program that is not active still has."""
        return (
            0 if program.active or program.kv_lost or not program.begun else program.private_tokens
        )

    def lose(self, program: ProgramState) -> None:
        """The KV of a program that is held is gone; what it had must be computed again."""
        self.paused_tokens -= self._rests(program)
        program.kv_lost = program.begun
        for line in program.conversations.values():
            line.until = 0.0

    def ended_after(self, jct: float) -> None:
        """Learn the seconds from a program's submission to its end, over all agents."""
        usual = jct if self.usual_jct is None else self.usual_jct
        self.usual_jct = usual + _LEARN * (jct - usual)

    def activate(self, program: ProgramState, now: float) -> None:
        """A held program's calls go to the engine from now on."""
        program.admitted_overdue = program.due_at <= now
        program.waited_seconds += now - program.waiting_since
        program.due_at = inf
        self.env_capacity.activate(program)
        self.paused_tokens -= self._rests(program)
        if not program.begun:
            program.admitted_at = now
        self.wait_queue.remove(program)
        program.active, program.begun, program.pause_pending, program.kv_lost = (
            True,
            True,
            False,
            False,
        )
        self.active[program.id] = program
        self.active_by_agent.setdefault(program.submission.agent, {})[program.id] = program
        self.tenants.activate(program)
        self.computing_programs += program.running > 0
        self.running_calls += program.running
        self.starting_programs += not program.has_called
        self.engine_load.expect(program.expected_load)
        self.tokens += program.tokens
        self.private_tokens += program.private_tokens
        self.reserved_tokens += program.reserved_tokens

    def _leave(self, program: ProgramState) -> None:
        program.active, program.absent_at = False, inf
        self.engine_load.expect(-program.expected_load)
        del self.active[program.id]
        peers = self.active_by_agent[program.submission.agent]
        del peers[program.id]
        if not peers:
            del self.active_by_agent[program.submission.agent]
        self.computing_programs -= program.running > 0
        self.running_calls -= program.running
        self.starting_programs -= not program.has_called
        self.env_capacity.deactivate(program)
        self.tenants.deactivate(program)
        self.tokens -= program.tokens
        self.private_tokens -= program.private_tokens
        self.reserved_tokens -= program.reserved_tokens

    def update_reservation(self, program: ProgramState, claim: int) -> None:
        """Promise a program another number of KV tokens."""
        if program.active and claim != program.reserved_tokens:
            self.reserved_tokens += claim - program.reserved_tokens
            self.tenants.update_reservation(program, claim - program.reserved_tokens)
        program.reserved_tokens = claim

    def resize(
        self, program: ProgramState, conversation: ConversationState, context: int, shared: int
    ) -> None:
        """A conversation has so many tokens now, the first `shared` of them not for itself."""
        change, before = context - conversation.context, conversation.private_tokens
        grown = shared > conversation.shared
        conversation.context, conversation.shared = context, shared
        if grown and conversation.siblings is not None:
            conversation.siblings.shares(conversation)
        own = conversation.private_tokens - before
        program.tokens += change
        program.private_tokens += own
        program.peak = max(program.peak, program.private_tokens)
        if program.active:
            self.tokens += change
            self.private_tokens += own
        elif program.begun and not program.kv_lost:
            self.paused_tokens += own

    def fork(
        self, program: ProgramState, parent: ConversationState, child: ConversationState
    ) -> None:
        """A conversation begins that goes on from another."""
        program.join(child)
        if parent.branches is None:
            parent.branches = Branches()
        parent.branches.add(child)

    def drop(self, program: ProgramState, conversation: ConversationState) -> None:
        """A conversation is over. What others go on from is, from now on, the own of the one that
        shares most of it, and the others share it with that."""
        before, group, siblings = conversation.shared, conversation.branches, conversation.siblings
        self.resize(program, conversation, 0, 0)
        if siblings is not None:
            siblings.remove(conversation)
        if not group:
            return
        heir = group.largest
        group.remove(heir)
        heir.branches = group.merged(heir.branches)
        if siblings is not None:
            siblings.add(heir)
        self.resize(program, heir, heir.context or heir.shared, min(heir.shared, before))

    def end(self, program: ProgramState) -> None:
        """A program is over."""
        del self.programs[program.id]
        self.graphs.leave(program.submission.agent)
        self.preempted_steps.difference_update(program.running_steps)
        self.env_capacity.end(program)
        if program.active:
            self._leave(program)
        else:
            self.paused_tokens -= self._rests(program)
            self.wait_queue.remove(program)
        self.tenants.end(program)

    def withdraw(self, program: ProgramState) -> None:
        """A program at a tool boundary goes to another state."""
        del self.programs[program.id]
        if program.active:
            self._leave(program)
            program.reserved_tokens = 0
            return
        self.wait_queue.remove(program)
        self.paused_tokens -= self._rests(program)
        if program.begun:
            self.env_capacity.unhold(program)

    def accept(self, program: ProgramState, order: Rank) -> None:
        """A program comes from another state; it is held until it is activated here."""
        self.programs[program.id] = program
        self.hold(program, order, program.waiting_since)

    def rerank(self, program: ProgramState, order: Rank) -> None:
        """What is known of a program has changed; a held one is ranked anew, for itself."""
        if not program.active:
            self.wait_queue.rerank(program, order)


__all__ = ["SchedulerState"]
