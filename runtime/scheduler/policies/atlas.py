"""`atlas`: least attained critical-path service first (Autellix, arXiv 2502.13965).

A call goes by the service that its program has had, in queues of growing quanta (2, 8, 32, 128 s:
the paper does not publish its own); within one, in order of arrival. A program that has waited more
than β times the service it had goes to the top. Nothing is kept at tool boundaries.
"""

from drawloom.runtime.scheduler.events import StepReady
from drawloom.runtime.scheduler.policies.request_cap import RequestLevel
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_QUANTA = (2.0, 8.0, 32.0, 128.0)
_BETA = 2.0


class Atlas(RequestLevel):
    """Serve the program with the least attained service first."""

    name = "atlas"
    spill = True

    def step_priority(
        self, state: SchedulerState, program: ProgramState, step: StepReady, now: float
    ) -> float:
        served = program.service
        waited = now - program.submitted_at
        if waited > (1 + _BETA) * max(served, _QUANTA[0]) and program.steps:
            return -1.0
        return float(sum(served >= quantum for quantum in _QUANTA))


__all__ = ["Atlas"]
