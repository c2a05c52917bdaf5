"""Benchmarks for developers: ``python -m drawloom.runtime.bench.scheduling NAME``."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from drawloom.errors import DrawloomError

app = App(
    name="python -m drawloom.runtime.bench.scheduling",
    help="Benchmarks for developers of the scheduler.",
    help_format="plaintext",
)


def _at_least(least: float) -> Parameter:
    return Parameter(validator=Number(gte=least))


Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
Workload = Annotated[str, Parameter(help="A workload by name, or a trace file.")]
Machine = Annotated[str, Parameter(help="A machine preset, or a file of `drawloom profile --out`.")]
Policies = Annotated[str, Parameter(help="Policy names, separated by commas.")]
HostMemory = Annotated[bool, Parameter(help="Keep evicted KV in host memory.")]
Pressure = Annotated[
    float, _at_least(0), Parameter(help="KV capacity over working set; 0: unlimited.")
]
Seeds = Annotated[int, _at_least(1), Parameter(help="Number of draws of programs and arrivals.")]
Programs = Annotated[
    int, _at_least(0), Parameter(help="Programs of each draw; 0: four times those in flight.")
]
Count = Annotated[int, _at_least(1)]
Size = Annotated[int, _at_least(0)]
Positive = Annotated[float, _at_least(0)]


@app.command
def scheduler(*, policy: Policies = "drawloom,fcfs-lru", json: Json = False) -> int:
    """Measure the scheduler's own time and memory with 10,000 programs in flight."""
    from drawloom.runtime.bench.scheduling import scheduler

    return scheduler.main(policy, json)


@app.command
def eviction(
    workload: Workload = "swe",
    *,
    machine: Machine = "h200-8b",
    pressure: Pressure = 0.4,
    seeds: Seeds = 5,
    programs: Programs = 0,
    json: Json = False,
) -> int:
    """Compare recomputed tokens when only the eviction order differs."""
    from drawloom.runtime.bench.scheduling import simulations
    from drawloom.runtime.sim.experiment import Scenario

    scenario = Scenario(workload, machine, pressure, host=False, seeds=seeds, programs=programs)
    return simulations.eviction(scenario, json)


@app.command
def ablate(
    workload: Workload = "swe",
    *,
    machine: Machine = "h200-8b",
    pressure: Pressure = 0.4,
    host: HostMemory = True,
    seeds: Seeds = 2,
    programs: Programs = 0,
    burst: Count = 1,
    json: Json = False,
) -> int:
    """Run the policy `drawloom` without each of its parts.

    Args:
        burst: programs that arrive at a time.
    """
    from drawloom.runtime.bench.scheduling import simulations
    from drawloom.runtime.sim.experiment import Scenario

    scenario = Scenario(
        workload, machine, pressure, host, seeds=seeds, programs=programs, burst=burst
    )
    return simulations.ablation(scenario, json)


@app.command
def graphs(
    workload: str = "graphs",
    *,
    policy: Policies = "drawloom",
    machine: Machine = "h200-8b",
    pressure: Pressure = 0.4,
    host: HostMemory = True,
    seeds: Seeds = 5,
    programs: Count = 300,
    skip: Size = 200,
    json: Json = False,
) -> int:
    """Compare declared, learned, HTTP-observed and unknown execution graphs.

    Args:
        workload: graphs, planner, map-reduce or best-of-n.
        programs: programs of each draw.
        skip: warm-up programs of each draw; they are not counted.
    """
    from drawloom.runtime.bench.scheduling import simulations
    from drawloom.runtime.sim.experiment import Scenario

    scenario = Scenario(
        workload, machine, pressure, host, seeds=seeds, programs=programs, skip=skip
    )
    return simulations.graphs(scenario, policy, json)


@app.command
def tenants(
    *,
    policy: Policies = "drawloom,saga,fcfs-lru",
    machine: Machine = "h200-8b",
    load: Positive = 0.8,
    minutes: Positive = 120.0,
    seeds: Seeds = 5,
    json: Json = False,
) -> int:
    """Measure fairness among ten tenants, heavy to light, on one engine.

    Args:
        load: share of the saturation rate, which is measured first.
        minutes: simulated minutes in which tasks arrive.
    """
    from drawloom.runtime.bench.scheduling import simulations

    return simulations.tenants(policy.split(","), machine, load, minutes, seeds, json)


@app.command
def unit(
    workload: str,
    *,
    machine: Machine = "h200-8b",
    pressure: Pressure = 0.4,
    host: HostMemory = True,
    seeds: Seeds = 5,
    programs: Programs = 0,
    json: Json = False,
) -> int:
    """Compare joint scheduling of KV, environments and tool slots with separate pools.

    Args:
        workload: a trace file with the start-up times of environments (swe-docker).
    """
    from drawloom.runtime.bench.scheduling import simulations
    from drawloom.runtime.sim.experiment import Scenario

    scenario = Scenario(workload, machine, pressure, host, seeds=seeds, programs=programs)
    return simulations.unit(scenario, json)


@app.command
def workflow(
    workload: Workload = "swe",
    *,
    policy: Policies = "drawloom,static-cap:5,continuum,fcfs-lru",
    programs: Count = 24,
    in_flight: Count = 12,
    pressure: Pressure = 0.4,
    tokens: Positive = 1 / 32,
    host: HostMemory = True,
    environments: bool = True,
    seed: Size = 0,
    plot: Path | None = None,
    json: Json = False,
) -> int:
    """Replay a workload on the live engine under several policies, and in the simulator.

    Args:
        programs: number of programs.
        in_flight: most programs that run at a time.
        seed: seed of the draw.
        tokens: scale of token counts. Seconds are scaled so that the engine is as busy between
            pauses as the simulator's preset.
        environments: tools wait for environments, if the workload has their start-up times.
        plot: write a PNG with the share of completed programs over time.
    """
    from drawloom.runtime.bench.replay_scaling import Replay
    from drawloom.runtime.bench.scheduling import workflow

    replay = Replay(
        workload,
        there=in_flight,
        count=programs,
        pressure=pressure,
        tokens=tokens,
        host=host,
        seed=seed,
        environments=environments,
    )
    return workflow.main(replay, [name.strip() for name in policy.split(",")], json, plot)


def main() -> int:
    """Run one benchmark and return its exit code."""
    try:
        return app(sys.argv[1:], result_action="return_value") or 0
    except DrawloomError as error:
        print(f"drawloom: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
