"""`atlas`: least attained critical-path service first (Autellix, arXiv 2502.13965).

A call goes by the service that its program has had, in queues of growing quanta (2, 8, 32, 128 s:
the paper does not publish its own); within one, in order of arrival. Whoever has waited more than
β times what it was served goes to the top. Nothing is kept at tool boundaries.
"""

from drawloom.runtime.scheduler.events import StepReady
from drawloom.runtime.scheduler.policies.request_cap import RequestLevel
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_QUANTA = (2.0, 8.0, 32.0, 128.0)
_BETA = 2.0


class Atlas(RequestLevel):
    name = "atlas"
    spill = True

    def priority(
        self, state: SchedulerState, program: ProgramState, step: StepReady, now: float
    ) -> float:
        served = program.service
        if now - program.submitted_at > (1 + _BETA) * max(served, _QUANTA[0]) and program.steps:
            return -1.0
        return float(sum(served >= quantum for quantum in _QUANTA))


__all__ = ["Atlas"]
