"""State of the scheduler: programs, engines, environments and graphs."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Union

from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.graph.running_mean import RunningMean
from drawloom.runtime.scheduler.agent_graphs import AgentGraphs
from drawloom.runtime.scheduler.conversation_state import ConversationState, ForkGroup
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.engine_load import EngineLoad
from drawloom.runtime.scheduler.env_capacity import EnvCapacity
from drawloom.runtime.scheduler.events import StepReady
from drawloom.runtime.scheduler.learned_cost import LearnedCost
from drawloom.runtime.scheduler.program_state import Phase, ProgramState, Rank
from drawloom.runtime.scheduler.tenants import Tenants
from drawloom.runtime.scheduler.wait_queue import WaitQueue


@dataclass(slots=True)
class Totals:
    """Sum up the active and the paused programs.

    A program is removed before anything that is summed up here changes, and added again afterwards.

    Attributes:
        tokens: context tokens of active programs.
        private_tokens: private tokens of active programs.
        reserved_tokens: KV tokens that active programs are promised.
        paused_tokens: private tokens of paused programs, except where their KV was lost.
        computing_programs: active programs with a call at an engine.
        running_calls: calls of active programs at an engine.
        starting_programs: active programs that have not made a call yet.
    """

    tokens: int = 0
    private_tokens: int = 0
    reserved_tokens: int = 0
    paused_tokens: int = 0
    computing_programs: int = 0
    running_calls: int = 0
    starting_programs: int = 0

    def add(self, program: ProgramState) -> None:
        """Count a program, as its phase demands."""
        self._count(program, 1)

    def remove(self, program: ProgramState) -> None:
        """Undo `add`; the program must be as it was then."""
        self._count(program, -1)

    def _count(self, program: ProgramState, sign: int) -> None:
        if program.phase is Phase.ACTIVE:
            self.tokens += sign * program.tokens
            self.private_tokens += sign * program.private_tokens
            self.reserved_tokens += sign * program.reserved_tokens
            self.computing_programs += sign * bool(program.running_steps)
            self.running_calls += sign * len(program.running_steps)
            self.starting_programs += sign * (not program.has_called)
        elif program.phase is Phase.PAUSED and not program.kv_lost:
            self.paused_tokens += sign * program.private_tokens


class SchedulerState:
    """Keep the books; the scheduler writes them, policies read them.

    Args:
        shared_with: the state of another engine. Both have the same tenants, environments, graphs
            and count of arrivals.

    Attributes:
        programs: programs that have not ended, by name.
        active: active programs, in the order in which they became active.
        active_by_agent: the same by agent.
        wait_queue: new and paused programs.
        totals: sums over active and paused programs.
        tenants: service and limits of each tenant.
        env_capacity: where environments are, and where there is room for more.
        graphs: execution graph of each agent.
        engines: KV tokens of each engine that is up.
        draining: engines of these that take no more calls.
        capacity: KV tokens of all engines.
        host_tokens: KV tokens that fit into host memory behind them.
        learned: cost model, learned from calls.
        queue_seconds: seconds that recent calls waited at their engine.
        engine_load: how busy the engines are.
        idle_seconds: time since a call was last at an engine.
        jct: mean seconds from submission to end, of programs of any agent.
        last_tick: when the policy's clock last ticked.
        preempted_steps: running calls that were preempted, and have not decoded anything since.
    """

    def __init__(self, shared_with: Union["SchedulerState", None] = None) -> None:
        self.arrivals: Iterator[int] = shared_with.arrivals if shared_with else count(1)
        self.tenants: Tenants = shared_with.tenants if shared_with else Tenants()
        self.env_capacity: EnvCapacity = shared_with.env_capacity if shared_with else EnvCapacity()
        self.graphs: AgentGraphs = shared_with.graphs if shared_with else AgentGraphs()
        self._cost: CostModel | None = shared_with._cost if shared_with else None
        self.programs: dict[str, ProgramState] = {}
        self.active: dict[str, ProgramState] = {}
        self.active_by_agent: dict[str, dict[str, ProgramState]] = {}
        self.wait_queue = WaitQueue(
            lambda program: self.graph(program.submission.agent), self.tenants
        )
        self.tenants.watch(self.wait_queue.on_tenant_freed)
        self.totals = Totals()
        self.engines: dict[str, int] = {}
        self.draining: set[str] = set()
        self._host_tokens: dict[str, int] = {}
        self.capacity = self.host_tokens = 0
        self.learned = LearnedCost()
        self.queue_seconds: deque[float] = deque(maxlen=128)
        self.engine_load = EngineLoad()
        self.jct = RunningMean()
        self.last_tick = -1.0
        self.preempted_steps: set[str] = set()
        self._clock = self.idle_seconds = 0.0

    def advance_clock(self, now: float) -> None:
        """Account for the time until `now`, in which nothing has changed."""
        if now > self._clock:
            passed, computing = now - self._clock, self.totals.computing_programs > 0
            self.engine_load.advance(passed, computing)
            self.idle_seconds = 0.0 if computing else self.idle_seconds + now - self._clock
        self._clock = now

    # --- engines and their costs ----------------------------------------------------------

    def engine_up(self, engine: str, tokens: int, host_tokens: int) -> None:
        """Count an engine, with its capacity in KV tokens on the device and in host memory."""
        self.engines[engine], self._host_tokens[engine] = tokens, host_tokens
        self.draining.discard(engine)
        self._sum_capacity()

    def engine_down(self, engine: str) -> None:
        """Forget an engine."""
        del self.engines[engine], self._host_tokens[engine]
        self.draining.discard(engine)
        self._sum_capacity()

    def _sum_capacity(self) -> None:
        self.capacity = sum(self.engines.values())
        self.host_tokens = sum(self._host_tokens.values())

    @property
    def closed(self) -> bool:
        """Return True if no engine takes programs: all are down or drain."""
        return len(self.draining) == len(self.engines)

    @property
    def cost(self) -> CostModel:
        """Return the cost model: the one that was set, else the one learned from calls."""
        return self.learned.model if self._cost is None else self._cost

    @cost.setter
    def cost(self, cost: CostModel) -> None:
        self._cost = cost

    def graph(self, agent: str) -> ExecutionGraph:
        """Return the execution graph of an agent; an empty one if the agent is new."""
        return self.graphs[agent]

    def step_seconds(self, graph: ExecutionGraph) -> float:
        """Return the mean seconds of service of an agent's LLM calls; of all agents' if unknown."""
        return graph.stats.step_seconds or self.graphs.step_seconds or 1.0

    # --- phases ---------------------------------------------------------------------------

    def submit(self, program: ProgramState) -> None:
        """Count a new program; `transition` puts it into the wait queue."""
        self.programs[program.id] = program
        self.graphs.enter(program.submission.agent)
        self.env_capacity.submit(program)
        self.tenants.submit(program)

    def transition(self, program: ProgramState, to: Phase, now: float, rank: Rank = ()) -> None:
        """Move a program to another phase, and update every book that counts it.

        Args:
            program: must be submitted.
            to: the phase.
            now: seconds.
            rank: of a program that waits, among the new ones of its agent.
        """
        self._leave_phase(program)
        if to is Phase.ACTIVE and program.phase is Phase.NEW:
            program.admitted_at = now
        program.phase = to
        self._enter_phase(program, now, rank)

    def _leave_phase(self, program: ProgramState) -> None:
        self.totals.remove(program)
        if program.active:
            agent = program.submission.agent
            del self.active[program.id], self.active_by_agent[agent][program.id]
            if not self.active_by_agent[agent]:
                del self.active_by_agent[agent]
            self.engine_load.expect(-program.expected_load)
            self.env_capacity.deactivate(program)
            self.tenants.deactivate(program)
            program.absent_at, program.reserved_tokens = inf, 0
        elif program.queue is not None:
            self.wait_queue.remove(program)

    def _enter_phase(self, program: ProgramState, now: float, rank: Rank) -> None:
        if program.phase is Phase.ACTIVE:
            self._enter_active(program, now)
        elif program.phase is Phase.ENDED:
            del self.programs[program.id]
            self.graphs.leave(program.submission.agent)
            self.preempted_steps.difference_update(program.running_steps)
            self.env_capacity.end(program)
            self.tenants.end(program)
        else:
            program.waiting_since = now
            if program.phase is Phase.PAUSED:
                self.env_capacity.pause(program)
            self.wait_queue.add(program, rank)
        self.totals.add(program)

    def _enter_active(self, program: ProgramState, now: float) -> None:
        program.admitted_overdue = program.due_at <= now
        program.waited_seconds += now - program.waiting_since
        program.due_at = inf
        program.pause_pending = program.kv_lost = False
        self.active[program.id] = program
        self.active_by_agent.setdefault(program.submission.agent, {})[program.id] = program
        self.env_capacity.activate(program)
        self.tenants.activate(program)
        self.engine_load.expect(program.expected_load)

    def withdraw(self, program: ProgramState) -> None:
        """Give up a program at a tool boundary, for another engine's state to `accept`."""
        del self.programs[program.id]
        self._leave_phase(program)
        if program.active:
            program.phase = Phase.PAUSED
        elif program.phase is Phase.PAUSED:
            self.env_capacity.withdraw(program)

    def accept(self, program: ProgramState, rank: Rank) -> None:
        """Take over a program that another engine's state has withdrawn; it waits here."""
        self.programs[program.id] = program
        self._enter_phase(program, program.waiting_since, rank)

    def lose_kv(self, program: ProgramState) -> None:
        """Note that a waiting program has lost its KV with its engine."""
        self.totals.remove(program)
        program.kv_lost = program.was_admitted
        self.totals.add(program)
        for conversation in program.conversations.values():
            conversation.lease_end = 0.0

    def rerank(self, program: ProgramState, rank: Rank) -> None:
        """Rank a program anew if it waits, since more is known of it."""
        if not program.active:
            self.wait_queue.rerank(program, rank)

    # --- calls and tokens -----------------------------------------------------------------

    def start_step(self, program: ProgramState, step: StepReady) -> None:
        """Count a call that goes to its engine."""
        self.totals.remove(program)
        program.running_steps[step.step] = step
        self.totals.add(program)
        program.absent_at = inf

    def stop_step(self, program: ProgramState, name: str) -> StepReady | None:
        """Forget a call at an engine and return it; None if it was not there."""
        step = program.running_steps.get(name)
        if step is not None:
            self.totals.remove(program)
            del program.running_steps[name]
            self.totals.add(program)
            self.preempted_steps.discard(name)
            if not program.running_steps:
                program.growth_threshold = inf
        return step

    def note_call(self, program: ProgramState) -> None:
        """Note that a program makes calls."""
        self.totals.remove(program)
        program.has_called = True
        self.totals.add(program)

    def update_reservation(self, program: ProgramState, tokens: int) -> None:
        """Promise a program another number of KV tokens."""
        change = tokens - program.reserved_tokens
        self.totals.remove(program)
        program.reserved_tokens = tokens
        self.totals.add(program)
        if program.active and change:
            self.tenants.update_reservation(program, change)

    def resize(
        self, program: ProgramState, conversation: ConversationState, context: int, shared: int
    ) -> None:
        """Change the size of a conversation.

        Args:
            program: the conversation's.
            conversation: to change.
            context: its tokens from now on.
            shared: the first so many of them are counted elsewhere.
        """
        before = conversation.private_tokens
        self.totals.remove(program)
        program.tokens += context - conversation.context
        conversation.context = context
        if shared != conversation.shared_tokens:
            conversation.shared_tokens = shared
            if conversation.siblings is not None:
                conversation.siblings.update(conversation)
        program.private_tokens += conversation.private_tokens - before
        program.peak = max(program.peak, program.private_tokens)
        self.totals.add(program)

    def fork(
        self, program: ProgramState, parent: ConversationState, child: ConversationState
    ) -> None:
        """Add a conversation that was forked from another."""
        program.add_conversation(child)
        if parent.forks is None:
            parent.forks = ForkGroup()
        parent.forks.add(child)

    def end_conversation(self, program: ProgramState, conversation: ConversationState) -> None:
        """Stop counting the tokens of a finished conversation.

        If forks still use its prefix, the fork that shares the longest part becomes its owner; the
        other forks share it with that one from now on.
        """
        inherited, forks = conversation.shared_tokens, conversation.forks
        siblings = conversation.siblings
        self.resize(program, conversation, 0, 0)
        if siblings is not None:
            siblings.remove(conversation)
        if not forks:
            return
        heir = forks.longest
        forks.remove(heir)
        heir.forks = forks.merged(heir.forks)
        if siblings is not None:
            siblings.add(heir)
        context = heir.context or heir.shared_tokens
        self.resize(program, heir, context, min(heir.shared_tokens, inherited))


__all__ = ["SchedulerState", "Totals"]
