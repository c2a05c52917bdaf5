"""Ablation of the `drawloom` policy: variants that each lack a part, on one workload."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.policies.parts.admission import Admission, Cap, Throughput
from drawloom.runtime.scheduler.policies.parts.bound import Bound
from drawloom.runtime.scheduler.policies.parts.order import LeastCost, Order
from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.policies.parts.residency import Residency
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState
from drawloom.runtime.sim.experiment import Scenario, simulate
from drawloom.runtime.sim.report import figures
from drawloom.runtime.sim.sim_program import Outcome


class NoProbe(LeastCost):
    """Order by `LeastCost` without probes: a new program runs to its end."""

    def probation_calls(self, state: SchedulerState, program: ProgramState) -> int:
        return 0

    def cost(self, state: SchedulerState, program: ProgramState) -> float:
        return self._whole(state, program)


class NoPause(Throughput):
    """Admit by `Throughput`, but pause no program when memory overflows."""

    def overflows(self, state: SchedulerState) -> bool:
        return False


VARIANTS: dict[str, Callable[[], Drawloom]] = {
    "drawloom": Drawloom,
    "order: by arrival": lambda: Drawloom(order=Order()),
    "order: no probes": lambda: Drawloom(order=NoProbe(Parameters())),
    "admission: everybody": lambda: Drawloom(admission=Admission()),
    "admission: 16 programs": lambda: Drawloom(admission=Cap(16)),
    "admission: memory alone": lambda: Drawloom(Parameters(busy=-1.0)),
    "admission: first peaks believed": lambda: Drawloom(Parameters(believed=1e-9)),
    "admission: nothing beyond": lambda: Drawloom(Parameters(beyond=0.0)),
    "admission: no pause": lambda: Drawloom(admission=NoPause(Parameters())),
    "residency: nothing kept": lambda: Drawloom(residency=Residency()),
    "residency: absent stay": lambda: Drawloom(Parameters(absent=1e9)),
    "bound: none": lambda: Drawloom(bound=Bound()),
}


def run_variant(scenario: Scenario, variant: str, seed: int) -> Outcome:
    """Simulate one seed of a scenario under a variant of the policy."""
    return simulate(scenario, VARIANTS[variant](), scenario.draw(seed))


def ablate(
    scenario: Scenario, variants: Sequence[str] = tuple(VARIANTS)
) -> dict[str, dict[str, float]]:
    """Return the figures of each variant, pooled over the scenario's seeds."""
    isolated = scenario.isolated_seconds()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = {
            name: [pool.submit(run_variant, scenario, name, seed) for seed in scenario.draws]
            for name in variants
        }
        return {
            name: figures([run.result() for run in several], isolated)
            for name, several in runs.items()
        }


__all__ = ["VARIANTS", "ablate", "run_variant"]
