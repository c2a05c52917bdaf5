"""Policies beside each other on one workload, several seeds each, on all cores."""

import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler import Policy, make_policy
from drawloom.runtime.scheduler.fleet import ROUTING
from drawloom.runtime.sim.eviction import FrozenDrawloom, accesses, farthest, replay
from drawloom.runtime.sim.generate import generate
from drawloom.runtime.sim.loop import Simulation
from drawloom.runtime.sim.presets import Machine, machine
from drawloom.runtime.sim.reference import Clairvoyant
from drawloom.runtime.sim.report import figures, isolated
from drawloom.runtime.sim.running import Outcome
from drawloom.runtime.sim.work import BLOCK
from drawloom.runtime.sim.workload import Job, Mix, in_flight, read

_ROUNDS = 4
_SWEEP = (0.15, 0.25, 0.35, 0.45, 0.55, 0.7, 0.85, 1.0)
_PLENTY = 20.0
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload on a machine. `pressure` is capacity over working set; 0 is memory without end
    for as many programs as at 0.4. `programs`: of each seed; 0 is four times those in flight. The
    first `skip` of them are not counted. `knows`: what the scheduler knows of agents
    (`Simulation`). `burst`: programs that arrive at a time. `replicas`: engines, each with so many
    programs in flight; `routing`: how programs find theirs (`Fleet`)."""

    workload: str
    machine: str = "h200-8b"
    pressure: float = 0.4
    host: bool = True
    seeds: int = 5
    programs: int = 0
    skip: int = 0
    knows: str = "learned"
    burst: int = 1
    replicas: int = 1
    routing: str = "affine"

    def population(self) -> list[Job]:
        """Raises `ConfigError`."""
        path = Path(self.workload)
        return read(path) if path.exists() else generate(self.workload)

    def engine(self) -> Machine:
        found = machine(self.machine)
        return found if self.pressure else replace(found, kv_tokens=int(_PLENTY * found.kv_tokens))

    def mix(self, jobs: Sequence[Job]) -> Mix:
        tokens = machine(self.machine).kv_tokens
        largest = max(job.peak for job in jobs)
        if largest > tokens:
            raise ConfigError(
                f"a program of {self.workload} has {largest:,} tokens; {self.machine} holds "
                f"{tokens:,}: name a larger machine"
            )
        there = self.replicas * in_flight(jobs, tokens, self.pressure or 0.4)
        if self.replicas < 1:
            raise ConfigError(f"{self.replicas} replicas run nothing; there is at least one")
        if self.routing not in ROUTING:
            raise ConfigError(f"routing {self.routing!r}: choose {', '.join(ROUTING)}")
        if self.burst < 1:
            raise ConfigError(f"{self.burst} programs cannot arrive at a time; at least one does")
        return Mix(tuple(jobs), there, self.programs or _ROUNDS * there, self.burst)


def run_one(scenario: Scenario, policy: str, seed: int) -> Outcome:
    """One policy, one seed."""
    jobs, engine = scenario.population(), scenario.engine()
    alone = statistics.fmean(isolated(engine, jobs).values())
    drawn = scenario.mix(jobs).draw(seed, alone)
    chosen: Policy = (
        Clairvoyant(drawn, engine.cost) if policy == Clairvoyant.name else make_policy(policy)
    )
    simulation = Simulation(
        engine, chosen, drawn, scenario.host, knows=scenario.knows,
        replicas=scenario.replicas, routing=scenario.routing,
    )  # fmt: skip
    outcome = simulation.run()
    late = [e for e in outcome.ended if int(e.job.id.partition(":")[0]) >= scenario.skip]
    return replace(outcome, ended=late)


def run_evictions(scenario: Scenario, seed: int) -> dict[str, int]:
    """Tokens prefilled again in one seed's `fcfs-lru` log, by what gives up KV."""
    jobs, engine = scenario.population(), replace(scenario.engine(), reserve=True)
    drawn = scenario.mix(jobs).draw(seed, statistics.fmean(isolated(engine, jobs).values()))
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
    """Tokens prefilled again when only eviction differs, and their ratio to the reference."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(run_evictions, [scenario] * scenario.seeds, range(scenario.seeds)))
    totals = {name: sum(run[name] for run in runs) for name in runs[0]}
    least = max(1, totals["farthest"])
    return {
        name: {"recomputed_tokens": total, "ratio": max(1, total) / least}
        for name, total in totals.items()
    }


def compare(
    scenario: Scenario, policies: Sequence[str], progress: Progress | None = None
) -> dict[str, dict[str, float]]:
    """The figures of each policy; `static-cap` without a number is the best of a sweep."""
    jobs = scenario.population()
    alone, there = isolated(scenario.engine(), jobs), scenario.mix(jobs).in_flight
    caps = sorted({max(1, round(share * there / scenario.replicas)) for share in _SWEEP})
    names = {p: [f"{p}:{n}" for n in caps] if p == "static-cap" else [p] for p in policies}
    for name in {n for several in names.values() for n in several} - {Clairvoyant.name}:
        make_policy(name)  # an unknown one is refused before anything runs
    found: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = {
            name: [pool.submit(run_one, scenario, name, seed) for seed in range(scenario.seeds)]
            for several in names.values()
            for name in several
        }
        for several in names.values():
            rows = {name: figures([r.result() for r in runs[name]], alone) for name in several}
            best = min(rows, key=lambda name: rows[name]["jct_mean_s"])
            found[best] = rows[best]
            if progress is not None:
                progress(best, rows[best]["jct_mean_s"])
    return found


__all__ = ["Scenario", "compare", "evictions", "run_evictions", "run_one"]
