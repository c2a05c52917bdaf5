"""Comparison of policies on one workload, several seeds each, on all cores."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from drawloom.runtime.scheduler import Policy
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.sim.eviction import FrozenDrawloom, accesses, farthest, replay
from drawloom.runtime.sim.oracle import Clairvoyant
from drawloom.runtime.sim.report import figures
from drawloom.runtime.sim.scenario import Scenario
from drawloom.runtime.sim.sim_calls import BLOCK
from drawloom.runtime.sim.sim_program import Outcome
from drawloom.runtime.sim.simulation import Simulation
from drawloom.runtime.sim.workload import Job

_SWEEP = (0.15, 0.25, 0.35, 0.45, 0.55, 0.7, 0.85, 1.0)
_REQUESTS = (0.1, 0.15, 0.25, 0.4, 0.6)
_SWEPT = ("static-cap", "cap-order")
Progress = Callable[[str, float], None]


def run_one(scenario: Scenario, policy: str, seed: int) -> Outcome:
    """Simulate one seed of a scenario under a policy."""
    engine, drawn = scenario.engine(), scenario.draw(seed)
    chosen: Policy = (
        Clairvoyant(drawn, engine.cost) if policy == Clairvoyant.name else make_policy(policy)
    )
    return simulate(scenario, chosen, drawn)


def simulate(scenario: Scenario, policy: Policy, drawn: list[Job]) -> Outcome:
    """Run given programs of a scenario under a policy; the outcome leaves out skipped ones."""
    simulation = Simulation(
        scenario.engine(),
        policy,
        drawn,
        scenario.host,
        knows=scenario.informed,
        replicas=scenario.replicas,
        routing=scenario.routing,
        calibrated=scenario.calibrated,
    )
    outcome = simulation.run()
    late = [e for e in outcome.ended if int(e.job.id.partition(":")[0]) >= scenario.skip]
    return replace(outcome, ended=late)


def run_evictions(scenario: Scenario, seed: int) -> dict[str, int]:
    """Return the tokens prefilled again in one seed's `fcfs-lru` log, by eviction rule."""
    engine, drawn = replace(scenario.engine(), reserve=True), scenario.draw(seed)
    simulation = Simulation(engine, make_policy("fcfs-lru"), drawn, False, record=True)
    simulation.run()
    log = accesses(simulation.log or [], engine.unit)
    unit = engine.unit
    blocks = engine.kv_tokens // (unit * BLOCK)
    return {
        "farthest": unit * farthest(log, blocks * BLOCK),
        "fcfs-lru": unit * replay(log, engine, make_policy("fcfs-lru")),
        "drawloom": unit * replay(log, engine, FrozenDrawloom()),
    }


def evictions(scenario: Scenario) -> dict[str, dict[str, float]]:
    """Return the tokens prefilled again by eviction rule, and their ratio to the reference."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(run_evictions, [scenario] * scenario.seeds, scenario.draws))
    totals = {name: sum(run[name] for run in runs) for name in runs[0]}
    least = max(1, totals["farthest"])
    return {
        name: {"recomputed_tokens": total, "ratio": max(1, total) / least}
        for name, total in totals.items()
    }


def variants(scenario: Scenario, policy: str) -> list[str]:
    """Return the policies that a name stands for.

    `static-cap` and `cap-order` without a number are swept over numbers of programs, ``NAME:best``
    over numbers of requests, unlimited included.
    """
    kind, _, argument = policy.partition(":")
    swept = _REQUESTS if argument == "best" else _SWEEP if policy in _SWEPT else ()
    if not swept:
        return [policy]
    in_flight = scenario.in_flight() / scenario.replicas
    caps = sorted({max(1, round(share * in_flight)) for share in swept})
    return [f"{kind}:{cap}" for cap in caps] + ([kind] if argument == "best" else [])


def compare(
    scenario: Scenario, policies: Sequence[str], progress: Progress | None = None
) -> dict[str, dict[str, float]]:
    """Return the figures of each policy; of a swept one, those of its best variant.

    Args:
        scenario: workload and machine.
        policies: names.
        progress: called with the name and the mean JCT of each policy.

    Raises:
        ConfigError: a policy or workload is not known.
    """
    isolated = scenario.isolated_seconds()
    names = {policy: variants(scenario, policy) for policy in policies}
    for name in {n for several in names.values() for n in several} - {Clairvoyant.name}:
        make_policy(name)  # an unknown one is refused before anything runs
    found: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = {
            name: [pool.submit(run_one, scenario, name, seed) for seed in scenario.draws]
            for several in names.values()
            for name in several
        }
        for several in names.values():
            rows = {name: figures([r.result() for r in runs[name]], isolated) for name in several}
            best = min(rows, key=lambda name: rows[name]["jct_mean_s"])
            found[best] = rows[best]
            if progress is not None:
                progress(best, rows[best]["jct_mean_s"])
    return found


__all__ = ["Scenario", "compare", "evictions", "run_evictions", "run_one", "simulate"]
