"""`drawloom`: programs are admitted, ordered, kept and equipped as units.

A composition of five parts (runtime/scheduler/parts/), each of which can be replaced by its null
object: what goes first (`order`), how many run (`admission`), what KV and places are kept while
programs wait (`residency`), how long one may be held (`bound`), and where tools run (`housing`).
Between tenants service is shared by weight: none is admitted whose tenant has had more than that of
another that waits, by what `fair` programs take.
"""

from collections.abc import Iterator

from drawloom.runtime.scheduler.events import StepReady, ToolReady
from drawloom.runtime.scheduler.policies.parts.admission import Admission, Throughput
from drawloom.runtime.scheduler.policies.parts.bound import Bound, Patience
from drawloom.runtime.scheduler.policies.parts.housing import Housing, Prewarmed
from drawloom.runtime.scheduler.policies.parts.order import LeastCost, Order
from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.policies.parts.residency import Leases, Residency
from drawloom.runtime.scheduler.policy import Policy, Retention
from drawloom.runtime.scheduler.program_state import ConversationState, ProgramState, Rank
from drawloom.runtime.scheduler.state import SchedulerState
from drawloom.runtime.scheduler.wait_queue import TenantQueue, WaitQueue

_CLASS, _TIE = 1e9, 1e-6


class Drawloom(Policy):
    """Compose a policy of parts; each defaults to drawloom's own.

    Args:
        parameters: the constants of the parts that are not given.
        order: what goes first.
        admission: how many programs run.
        residency: what is kept while programs wait.
        bound: how long one may be held.
        housing: where tools run.
    """

    name = "drawloom"
    spill = True
    evict_at_end = True
    claim_early = True
    houses = True
    parks = True

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
        self.parts = (
            order or LeastCost(p), admission or Throughput(p), residency or Leases(p),
            bound or Patience(p), housing or Prewarmed(p),
        )  # fmt: skip
        self._order, self._admission, self._residency, self._bound, self._housing = self.parts

    def order(self, state: SchedulerState, program: ProgramState) -> Rank:
        declared = program.declared_calls or 0.0
        calls = state.graph(program.submission.agent).declared.expected(declared)
        return -program.submission.priority, calls, program.private_tokens, program.index

    def rank(self, state: SchedulerState, program: ProgramState) -> Rank:
        cost = self._order.cost(state, program)
        return -program.submission.priority, cost, program.private_tokens, program.index

    def priority(
        self, state: SchedulerState, program: ProgramState, step: StepReady, now: float
    ) -> float:
        first = (
            program.probation_calls or program.admitted_overdue
        )  # a short look, or held for long enough
        cost = -1.0 if first else self._order.cost(state, program)
        return cost + _TIE * program.index - _CLASS * program.submission.priority

    def due(self, state: SchedulerState, program: ProgramState) -> float:
        return self._bound.due(state, program)

    # --- admission ------------------------------------------------------------------------

    def admit(self, state: SchedulerState, now: float) -> Iterator[ProgramState]:
        while (program := self._next(state, now)) is not None:
            if not self._housing.fits(state, program, now):
                program = self._housing.instead(state)
            if program is None or not self.takes(state, program):
                return
            yield program

    def takes(self, state: SchedulerState, program: ProgramState) -> bool:
        return self._admission.fits(state, program, self.look(state, program))

    def look(self, state: SchedulerState, program: ProgramState) -> int:
        return self._order.look(state, program) if state.active else 0

    def reserve(self, state: SchedulerState, program: ProgramState) -> int:
        return self._admission.reserve(state, program, program.probation_calls)

    def again(self, state: SchedulerState) -> float | None:
        return self._admission.again(state)

    def adds(self, state: SchedulerState, program: ProgramState) -> float:
        return self._admission.adds(state, program)

    def _next(self, state: SchedulerState, now: float) -> ProgramState | None:
        """Return the first, unless its tenant is too far ahead of another that waits."""
        first, needy = self._turn(state.wait_queue, now), state.wait_queue.least_served
        if first is None or needy is None:
            return first
        ahead = state.tenants.of(first).attained - needy.tenant.attained
        if ahead <= self.parameters.fair * state.tenants.usual:
            return first
        other = self._turn(needy, now)
        behind = other is None or other.submission.priority < first.submission.priority
        return first if behind else other

    def _turn(self, held: WaitQueue | TenantQueue, now: float) -> ProgramState | None:
        """Return the first of these, or the one of its priority that was held for too long."""
        due = held.due
        return due if due is not None and due.due_at <= now else held.first

    def pause(self, state: SchedulerState, now: float) -> Iterator[ProgramState]:
        while len(state.active) > 1 and self._admission.overflows(state):
            acting = [
                p for p in state.active.values() if p.at_tool_boundary and not p.probation_calls
            ]
            if not acting:
                return
            yield max(acting, key=lambda p: self.rank(state, p))

    # --- retention, tools and environments ------------------------------------------------

    def paused(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        return self._residency.paused(state)

    def retain(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        return self._residency.retain(state, program, conversation)

    def absent(
        self, state: SchedulerState, program: ProgramState, tools: str | None
    ) -> float | None:
        return self._residency.absent(state, program, tools)

    def tool(
        self, state: SchedulerState, program: ProgramState, event: ToolReady, now: float
    ) -> float:
        """The shortest expected goes first."""
        usual = state.graph(program.submission.agent).durations.quantile(event.tool, 0.5)
        return self.parameters.unknown if usual is None else usual

    def warm(self, state: SchedulerState, env: str, now: float) -> int:
        return self._housing.warm(state, env, now)


__all__ = ["Drawloom"]
