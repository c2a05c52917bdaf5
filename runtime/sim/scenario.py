"""Scenarios: a workload on a machine, and when its programs arrive."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler.multi_engine import ROUTING
from drawloom.runtime.sim.fixed_workloads import FIXED, draw_fixed
from drawloom.runtime.sim.presets import Machine, machine
from drawloom.runtime.sim.report import isolated
from drawloom.runtime.sim.synthetic import KINDS, generate
from drawloom.runtime.sim.workload import Job, Mix, in_flight, read

_ROUNDS = 4  # times the programs in flight, by default
_PLENTY = 20.0  # times the machine's memory, for no limit
_MACHINE, _HOUR = "h200-8b", 3600.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Describe a workload on a machine.

    Attributes:
        workload: a generated kind, a trace file, several of these with ``+`` between them, drawn
            from equally often, or a fixed one (`FIXED`).
        machine: its name; empty is the workload's own, `h200-8b` where it has none.
        pressure: KV capacity over working set; 0 is unlimited KV at the concurrency of 0.4. Fixed
            workloads have their own.
        host: there is host memory behind the device.
        seeds: how many.
        programs: of each seed; 0 is four times those in flight.
        skip: programs at the beginning that are not counted.
        knows: what the scheduler knows of agents (`Simulation`); empty is what it can learn.
        burst: programs that arrive at a time.
        replicas: engines, each with so many programs in flight.
        routing: how programs find their engine (`MultiEngineScheduler`).
        first_seed: of the `seeds`.
        calibrated: the scheduler knows the machine's costs from the start, as after `drawloom
            profile`; else it learns them.
        humans: share of programs that wait an hour for a person at one of their calls.
        waits: sessions of traces go on where a person was asked, after as long as that took.
        rate: programs a second; 0 is as many as fill memory at `pressure`.
    """

    workload: str
    machine: str = ""
    pressure: float = 0.4
    host: bool = True
    seeds: int = 5
    programs: int = 0
    skip: int = 0
    knows: str = ""
    burst: int = 1
    replicas: int = 1
    routing: str = "affine"
    first_seed: int = 0
    calibrated: bool = False
    humans: float = 0.0
    waits: bool = False
    rate: float = 0.0

    @property
    def draws(self) -> range:
        """Return the seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def informed(self) -> str:
        """Return what the scheduler knows of agents."""
        fixed = FIXED.get(self.workload)
        return self.knows or (fixed.knows if fixed else "learned")

    @property
    def machine_name(self) -> str:
        """Return the name of the machine."""
        fixed = FIXED.get(self.workload)
        return self.machine or (fixed.machine if fixed else _MACHINE)

    def describe(self) -> str:
        """Return the workload, the machine, its memory and the seeds in words."""
        host = self.host and self.engine().host_tokens
        words = [f"{self.workload} on {self.machine_name}"]
        if self.workload not in FIXED:
            share = f"capacity / working set {self.pressure:g}"
            words.append(share if self.pressure else "no limit")
        words.append("host memory" if host else "no host memory")
        last = self.draws[-1]
        words.append(f"seeds {self.first_seed}-{last}" if self.seeds > 1 else f"seed {last}")
        if self.replicas > 1:
            words.append(f"{self.replicas} replicas, {self.routing}")
        return ", ".join(words)

    def parts(self) -> list[list[Job]]:
        """Return the programs of each part of the workload.

        Raises:
            ConfigError: the workload is not known.
        """
        if self.workload in FIXED:
            return [draw_fixed(self.workload, self.programs, self.first_seed)]
        found = []
        for name in self.workload.split("+"):
            path = Path(name)
            if not path.exists() and name not in KINDS:
                known = ", ".join([*KINDS, *FIXED])
                raise ConfigError(f"workload {name!r}: choose {known}, or a trace file")
            found.append(read(path, self.waits) if path.exists() else generate(name))
        return found

    def population(self) -> list[Job]:
        """Return the programs of all parts of the workload.

        Raises:
            ConfigError: the workload is not known.
        """
        return [job for part in self.parts() for job in part]

    def engine(self) -> Machine:
        """Return the machine, with memory as `pressure` demands."""
        found = machine(self.machine_name)
        return found if self.pressure else replace(found, kv_tokens=int(_PLENTY * found.kv_tokens))

    def mix(self, jobs: Sequence[Job], shares: Sequence[float] = ()) -> Mix:
        """Return the mix that seeds are drawn from.

        Raises:
            ConfigError: the scenario cannot be run.
        """
        tokens = machine(self.machine_name).kv_tokens
        largest = max(job.peak for job in jobs)
        if largest > tokens:
            raise ConfigError(
                f"a program of {self.workload} has {largest:,} tokens; {self.machine_name} holds "
                f"{tokens:,}: name a larger machine"
            )
        programs = self.replicas * in_flight(jobs, tokens, self.pressure or 0.4, shares)
        if self.replicas < 1:
            raise ConfigError(f"{self.replicas} replicas run nothing; there is at least one")
        if self.routing not in ROUTING:
            raise ConfigError(f"routing {self.routing!r}: choose {', '.join(ROUTING)}")
        if self.burst < 1:
            raise ConfigError(f"{self.burst} programs cannot arrive at a time; at least one does")
        count = self.programs or _ROUNDS * programs
        return Mix(tuple(jobs), programs, count, self.burst, tuple(shares))

    def draw(self, seed: int) -> list[Job]:
        """Return the programs of a seed, with their arrivals.

        Raises:
            ConfigError: the scenario cannot be run.
        """
        if self.workload in FIXED:
            return draw_fixed(self.workload, self.programs, seed)
        parts = self.parts()
        jobs = [job for part in parts for job in part]
        shares = [1 / len(part) for part in parts for _ in part] if len(parts) > 1 else []
        mix, seconds = self.mix(jobs, shares), isolated(self.engine(), jobs)
        mean = statistics.fmean([seconds[job.id] for job in jobs])
        if shares:
            mean = sum(s * seconds[j.id] for s, j in zip(shares, jobs, strict=True)) / sum(shares)
        if self.rate:
            mean = mix.in_flight / self.rate
        return _with_humans(mix.draw(seed, mean), self.humans, seed)

    def in_flight(self) -> int:
        """Return the number of programs that are meant to be in flight."""
        if self.workload in FIXED:
            return min(48, len(self.population()))
        parts = self.parts()
        jobs = [job for part in parts for job in part]
        shares = [1 / len(part) for part in parts for _ in part] if len(parts) > 1 else []
        return self.mix(jobs, shares).in_flight

    def isolated_seconds(self) -> dict[str, float]:
        """Return the isolated seconds of all seeds' programs, by their ids in the workload."""
        jobs = {job.id.partition(":")[2]: job for seed in self.draws for job in self.draw(seed)}
        return isolated(self.engine(), [replace(job, id=key) for key, job in jobs.items()])


def _with_humans(jobs: list[Job], share: float, seed: int) -> list[Job]:
    """Let a share of the programs wait an hour at one of their calls but the last."""
    rng, found = random.Random(seed + 7_919), []
    for job in jobs:
        if rng.random() >= share or len(job.calls) < 2:
            found.append(replace(job, group="plain") if share else job)
            continue
        at = rng.randrange(len(job.calls) - 1)
        calls = list(job.calls)
        calls[at] = replace(calls[at], gap=_HOUR, tool="ask_human", busy=0.0)
        number, _, name = job.id.partition(":")
        asking = f"{number}:{name}+{number}.{seed}"
        found.append(replace(job, id=asking, calls=tuple(calls), group="asking"))
    return found


__all__ = ["Scenario"]
