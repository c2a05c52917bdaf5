"""Completion times over load and memory.

Load is the rate of arrivals over the rate at which programs end while there is a backlog. That rate
is measured with arrivals as without a load (in flight over isolated time, several times what is
served), as the best of `fcfs-lru` and of `static-cap` over its sweep, on the first seed, between
the first and the last quarter of programs to end, while the engine neither fills nor runs dry.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

from drawloom.errors import ConfigError
from drawloom.runtime.sim.experiment import compare, run_one, variants
from drawloom.runtime.sim.fixed_workloads import FIXED
from drawloom.runtime.sim.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Point:
    """Keep the figures of policies at one load and memory.

    Attributes:
        memory: capacity over working set.
        load: share of saturation; 0 is the workload's own arrivals.
        rate: programs a second.
        policies: figures by policy.
    """

    memory: float
    load: float
    rate: float
    policies: dict[str, dict[str, float]]


def _ends(scenario: Scenario, policy: str) -> float:
    """Return the programs a second that end while there is a backlog."""
    ended = sorted(one.ended for one in run_one(scenario, policy, scenario.first_seed).ended)
    early, late = len(ended) // 4, 3 * len(ended) // 4
    return (late - early) / max(1e-9, ended[late] - ended[early])


def saturation(scenario: Scenario) -> float:
    """Return the largest rate, in programs a second, at which a backlog of the workload ends.

    Raises:
        ConfigError: the workload's arrivals are fixed.
    """
    if scenario.workload in FIXED:
        raise ConfigError(f"{scenario.workload} has arrivals of its own, so no load")
    names = ["fcfs-lru", *variants(scenario, "static-cap")]
    backlog = replace(scenario, rate=0.0)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return max(pool.map(_ends, [backlog] * len(names), names))


def over_load(
    scenario: Scenario,
    policies: Sequence[str],
    loads: Sequence[float],
    memories: Sequence[float],
    progress: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Return a point for each memory share and load; without loads, for each memory share.

    Raises:
        ConfigError: a policy or workload is not known, or its arrivals are fixed.
    """
    found = []
    for memory in memories or (scenario.pressure,):
        at = replace(scenario, pressure=memory)
        most = saturation(at) if loads else 0.0
        for load in loads or (0.0,):
            rows = compare(replace(at, rate=load * most), policies)
            found.append(Point(memory, load, load * most, rows))
            progress(found[-1])
    return found


__all__ = ["Point", "over_load", "saturation"]
