"""`drawloom`: programs are admitted, ordered, retained and given environments as units.

A composition of five parts (`parts/`), each of which can be replaced by its null object: which
program goes first (`order`), how many run (`admission`), which KV is kept and which programs stay
active while they wait for tools (`residency`), how long one may wait for admission (`bound`), and
where tools run (`housing`).
Service is shared between tenants by weight: no program is admitted whose tenant is ahead of another
one that waits by more than `fair` programs' service.
"""

from collections.abc import Iterator

from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.events import StepReady, ToolReady
from drawloom.runtime.scheduler.policies.parts.admission import Admission, Throughput
from drawloom.runtime.scheduler.policies.parts.bound import Bound, Patience
from drawloom.runtime.scheduler.policies.parts.housing import Housing, Prewarmed
from drawloom.runtime.scheduler.policies.parts.order import LeastCost, Order
from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.policies.parts.residency import Leases, Residency
from drawloom.runtime.scheduler.policy import Absence, Grant, Policy, Recheck, Retention
from drawloom.runtime.scheduler.program_state import ProgramState, Rank
from drawloom.runtime.scheduler.state import SchedulerState
from drawloom.runtime.scheduler.wait_queue import TenantQueue, WaitQueue

_PRIORITY, _TIE = 1e9, 1e-6  # weights of a program's priority and of its arrival, in seconds


class Drawloom(Policy):
    """Compose a policy of parts; each defaults to drawloom's own.

    Args:
        parameters: the constants of the parts that are not given.
        order: which program goes first.
        admission: how many programs run.
        residency: what is kept while programs wait.
        bound: how long a program may wait.
        housing: where tools run.
    """

    name = "drawloom"
    spill = True
    evict_at_end = True
    admits_by_env_capacity = True
    claims_early = True
    parks_envs = True

    def __init__(
        self,
        parameters: Parameters | None = None,
        *,
        order: Order | None = None,
        admission: Admission | None = None,
        residency: Residency | None = None,
        bound: Bound | None = None,
        housing: Housing | None = None,
    ) -> None:
        if not isinstance(parameters, Parameters | None):
            raise TypeError("the parameters of a policy are a Parameters object")
        self.parameters = p = parameters or Parameters()
        self._order = order or LeastCost(p)
        self._admission = admission or Throughput(p)
        self._residency = residency or Leases(p)
        self._bound = bound or Patience(p)
        self._housing = housing or Prewarmed(p)

    # --- order ----------------------------------------------------------------------------

    def agent_rank(self, state: SchedulerState, program: ProgramState) -> Rank:
        declared = program.declared_calls or 0.0
        calls = state.graph(program.submission.agent).declared.expected(declared)
        return -program.submission.priority, calls, program.private_tokens, program.index

    def rank(self, state: SchedulerState, program: ProgramState) -> Rank:
        cost = self._order.cost(state, program)
        return -program.submission.priority, cost, program.private_tokens, program.index

    def max_wait(self, state: SchedulerState, program: ProgramState) -> float:
        return self._bound.max_wait(state, program)

    def step_priority(
        self, state: SchedulerState, program: ProgramState, step: StepReady, now: float
    ) -> float:
        goes_first = program.probation_calls or program.admitted_overdue
        cost = -1.0 if goes_first else self._order.cost(state, program)
        return cost + _TIE * program.index - _PRIORITY * program.submission.priority

    def tool_priority(
        self, state: SchedulerState, program: ProgramState, event: ToolReady, now: float
    ) -> float:
        """Return the median seconds of the tool: the shortest goes first."""
        durations = state.graph(program.submission.agent).durations
        median = durations.quantile(event.tool, 0.5)
        return self.parameters.unknown if median is None else median

    # --- admission ------------------------------------------------------------------------

    def admit(self, state: SchedulerState, now: float) -> Iterator[Grant | Recheck]:
        while (program := self._next(state, now)) is not None:
            if not self._housing.fits(state, program, now):
                program = self._housing.instead(state)
            if program is None or not self.would_admit(state, program):
                seconds = self._admission.recheck_after(state)
                if seconds is not None:
                    yield Recheck(seconds)
                return
            yield self.grant(state, program)

    def would_admit(self, state: SchedulerState, program: ProgramState) -> bool:
        return self._admission.fits(state, program, self._probation_calls(state, program))

    def grant(self, state: SchedulerState, program: ProgramState) -> Grant:
        calls = self._probation_calls(state, program)
        return Grant(
            program,
            self._admission.reserve(state, program, calls),
            calls,
            self._admission.added_load(state, program),
        )

    def reserve(self, state: SchedulerState, program: ProgramState) -> int:
        return self._admission.reserve(state, program, program.probation_calls)

    def _probation_calls(self, state: SchedulerState, program: ProgramState) -> int:
        """Return after how many calls a program is held again; with nobody else there, never."""
        return self._order.probation_calls(state, program) if state.active else 0

    def _next(self, state: SchedulerState, now: float) -> ProgramState | None:
        """Return the first program, or that of the least served tenant if it is too far behind."""
        first, least_served = self._first(state.wait_queue, now), state.wait_queue.least_served
        if first is None or least_served is None:
            return first
        lead = state.tenants.of(first).attained - least_served.tenant.attained
        if lead <= self.parameters.fair * state.tenants.mean_service:
            return first
        other = self._first(least_served, now)
        lower = other is None or other.submission.priority < first.submission.priority
        return first if lower else other

    def _first(self, queue: WaitQueue | TenantQueue, now: float) -> ProgramState | None:
        """Return the due program of a queue, else its first one."""
        due = queue.due
        return due if due is not None and due.due_at <= now else queue.first

    # --- pausing --------------------------------------------------------------------------

    def pause(self, state: SchedulerState, now: float) -> Iterator[ProgramState]:
        while len(state.active) > 1 and self._admission.overflows(state):
            programs = [
                program
                for program in state.active.values()
                if program.at_tool_boundary and not program.probation_calls
            ]
            if not programs:
                return
            yield max(programs, key=lambda program: self.rank(state, program))

    def absence(self, state: SchedulerState, program: ProgramState, tools: str | None) -> Absence:
        return self._residency.absence(state, program, tools)

    # --- KV and environments --------------------------------------------------------------

    def retain(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        return self._residency.retain(state, program, conversation)

    def retain_paused(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        return self._residency.retain_paused(state)

    def warm_target(self, state: SchedulerState, env: str, now: float) -> int:
        return self._housing.warm_target(state, env, now)


__all__ = ["Drawloom"]
