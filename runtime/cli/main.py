"""Command line of `drawloom`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a budget was spent, 130 interrupted.
"""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from drawloom.errors import BudgetExceeded, ConfigError, DrawloomError
from drawloom.runtime.cli.benches import bench_app
from drawloom.runtime.cli.environments import sandbox_app
from drawloom.runtime.cli.options import (
    STORE,
    Count,
    Device,
    Dtype,
    EngineOptions,
    Json,
    Kind,
    KvTokens,
    Machine,
    Model,
    Policy,
    Pressure,
    Programs,
    Seconds,
    Seeds,
    ServerEngineOptions,
    Share,
    Size,
    StoreUrl,
)

app = App(
    name="drawloom",
    help="Run agent programs under one scheduler for LLM calls, KV cache and tool environments.",
    help_format="plaintext",  # markdown would drop <think> as a tag
    version="0.1.0",
    suppress_keyboard_interrupt=False,
)
_ENGINE, _SERVER_ENGINE = EngineOptions(), ServerEngineOptions()
app.command(sandbox_app)
app.command(bench_app)


@app.command
def demo(
    *,
    model: Model = "tinyagent",
    device: Device = "auto",
    sandbox: Kind = "auto",
    out: Path = Path("."),
    json: Json = False,
) -> int:
    """Run the same programs under two policies and compare completion times.

    Args:
        out: the folder for demo.html and demo.png.
    """
    from drawloom.runtime.demo import report
    from drawloom.runtime.demo import run as demo_run

    options = demo_run.DemoOptions(model=model, device=device, sandbox=sandbox)
    with demo_run.docker_engine(sandbox) as url, report.show_progress(json) as progress:
        outcomes = asyncio.run(demo_run.run_demo(options, url, progress))
    pictures = report.save_pictures(outcomes, out)
    report.print_summary(report.summarise(outcomes), pictures, json)
    return 0


@app.command
def run(
    entry: str,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)],
    model: Model = "tinyagent",
    store: StoreUrl = STORE,
    policy: Policy = "drawloom",
    sandbox: Kind = "auto",
    engine: EngineOptions = _ENGINE,
    json: Json = False,
) -> int:
    """Run an agent: `drawloom run module:agent --question "…"`.

    Args:
        entry: the agent, as `module:name` or `path/to/file.py:name`.
        arguments: the agent's arguments, as `--name value`.
    """
    from drawloom.runtime.cli import programs

    options = programs.Options(model, store, policy, sandbox, engine)
    return asyncio.run(programs.run(entry, list(arguments), options, json))


@app.command
def mcp(
    *entries: str,
    store: StoreUrl = STORE,
    sandbox: Kind = "auto",
    device: Device = "auto",
) -> int:
    """Offer tools as an MCP server over stdio: `drawloom mcp tools.py:shell tools.py:search`.

    Args:
        entries: the tools, as `module:name` or `path/to/file.py:name`.
    """
    from drawloom.runtime.cli import programs

    if not entries:
        raise ConfigError("no tools are given: drawloom mcp path/to/file.py:name")
    options = programs.Options("tinyagent", store, "drawloom", sandbox, EngineOptions(device))
    return asyncio.run(programs.serve_tools(list(entries), options))


@app.command
def resume(
    program: str,
    *,
    model: Model | None = None,
    store: StoreUrl = STORE,
    policy: Policy | None = None,
    sandbox: Kind | None = None,
    engine: EngineOptions = _ENGINE,
    json: Json = False,
) -> int:
    """Resume a program whose process died; completed steps are not run again.

    Model, policy and sandbox are those of the program's start, unless given.

    Args:
        program: id of the program, from `drawloom ps`.
    """
    from drawloom.runtime.cli import programs

    given = {"model": model, "policy": policy, "sandbox": sandbox}
    return asyncio.run(programs.resume(program, given, store, engine, json))


@app.command
def ps(*, store: StoreUrl = STORE, server: str = "", limit: Count = 30, json: Json = False) -> int:
    """List programs, the newest first.

    Args:
        server: list the programs of a running `drawloom serve` with this URL; the API key is read
            from DRAWLOOM_API_KEY.
        limit: the most programs to list.
    """
    from drawloom.runtime.cli import programs, served

    if server:
        return served.ps(server, os.environ.get("DRAWLOOM_API_KEY", ""), limit, json)
    return asyncio.run(programs.ps(store, limit, json))


@app.command
def trace(program: str, *, store: StoreUrl = STORE, json: Json = False) -> int:
    """Show the timeline of a program.

    Args:
        program: id of the program, from `drawloom ps`.
    """
    from drawloom.runtime.cli import programs

    return asyncio.run(programs.trace(program, store, json))


@app.command
def graph(
    agent: str | None = None,
    *,
    store: StoreUrl = STORE,
    calibration: bool = False,
    json: Json = False,
) -> int:
    """Show the learned execution graphs: transitions, tool durations, remaining calls.

    Args:
        agent: name of an agent; all agents by default.
        calibration: show the accuracy of forecasts instead.
    """
    from drawloom.runtime.cli import graphs

    return asyncio.run(graphs.main(store, agent, calibration, json))


@app.command
def serve(
    *,
    model: Model = "tinyagent",
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: list[str] | None = None,
    allow_host: list[str] | None = None,
    insecure: bool = False,
    name: str = "",
    policy: Policy = "drawloom",
    engine: ServerEngineOptions = _SERVER_ENGINE,
    reasoning: bool = False,
    trust_priority: bool = False,
    drain: Seconds = 30.0,
    isolate: bool = False,
    cost: Path | None = None,
    tenant: list[str] | None = None,
) -> int:
    """Serve a model over OpenAI's HTTP API.

    Args:
        host: the address to listen on. An address off loopback needs a key.
        port: the port; 0 takes any free one.
        api_key: a key that clients must send as a bearer token; may be given several times.
            DRAWLOOM_API_KEY is safer, since other users can see arguments.
        allow_host: a further host name that clients and pages may use, such as a reverse proxy's;
            * is any. Loopback names are always allowed.
        insecure: serve off loopback without a key: everybody who reaches the address can use it.
        name: the model's name for clients; by default the last part of its path.
        reasoning: answers begin with reasoning, ended by </think>, whatever the template says.
        trust_priority: use the `priority` of requests, which is ignored otherwise.
        drain: seconds for running requests after SIGTERM or Ctrl-C.
        isolate: run the engine in a separate process, so that a crash of it fails no request.
        cost: a cost model, written by `drawloom profile --out`.
        tenant: limits of a tenant, as NAME:weight=2,programs=8,kv_tokens=100000; each is optional.
            Requests name their tenant in the header x-tenant, which is not authenticated.
    """
    from drawloom.runtime.console import output
    from drawloom.runtime.scheduler.cost import CostModel
    from drawloom.runtime.scheduler.events import TenantShare
    from drawloom.runtime.sdk.options import Limits
    from drawloom.runtime.sdk.runtime import Runtime
    from drawloom.runtime.server import serve as server
    from drawloom.runtime.server.access import Access

    keys = [*(api_key or ()), os.environ.get("DRAWLOOM_API_KEY", "")]
    options = server.ServeOptions(
        name=name or Path(model).name,
        reasoning=reasoning,
        trust_priority=trust_priority,
        drain=drain,
        access=Access.for_listener(host, keys, allow_host or (), insecure),
    )
    runtime = Runtime(
        model,
        policy=policy,
        sandbox="none",
        engine=engine.config(),
        isolate=isolate,
        record=False,
        cost=CostModel.load(cost) if cost is not None else None,
        limits=Limits(tenants=tuple(map(TenantShare.parse, tenant or ()))),
    )
    listener = server.bind(host, port)
    output.log_to_stderr("drawloom.access")
    return asyncio.run(server.serve(runtime, listener, options))


@app.command
def profile(
    *,
    model: Model = "tinyagent",
    device: Device = "auto",
    dtype: Dtype = "auto",
    kv_tokens: KvTokens = 0,
    out: Path | None = None,
    json: Json = False,
) -> int:
    """Measure the cost model of this machine, for the scheduler and the simulator.

    Args:
        out: write the cost model to this file, for `--cost` of serve and `Runtime(cost=…)`.
    """
    from drawloom.runtime.cli import profiles

    return profiles.main(model, device, dtype, kv_tokens, out, json)


@app.command
def sim(
    workload: str = "swe",
    *,
    policy: str = "fcfs-lru,static-cap,drawloom,clairvoyant",
    machine: Machine = "",
    pressure: Pressure = 0.4,
    memory: str = "",
    load: str = "",
    host: bool = True,
    seeds: Seeds = 3,
    first_seed: Size = 0,
    programs: Programs = 0,
    burst: Count = 1,
    humans: Share = 0.0,
    waits: bool = False,
    knows: str = "",
    calibrated: bool = False,
    replicas: Count = 1,
    routing: str = "affine",
    picture: Path | None = None,
    json: Json = False,
) -> int:
    """Simulate a workload under several policies.

    Args:
        workload: swe, chats, web, function, rl, graphs, or a trace file; several, joined by +, are
            mixed equally. Or one with its own arrivals and machine: agents, agents-past, human,
            human2, jump, liar, honest, cold, fork, flood.
        policy: names separated by commas, or all. static-cap and cap-order are the best of a
            sweep over numbers of programs, NAME:best over numbers of calls at the engine.
        memory: several values of --pressure, separated by commas.
        load: arrival rates as shares of the saturation rate, separated by commas.
        host: keep evicted KV in host memory.
        first_seed: the first seed; policies were tuned on low ones.
        burst: programs that arrive at a time; the mean rate stays the same.
        humans: share of programs that wait an hour for a human at one of their calls.
        waits: sessions of traces continue after their waits for a human.
        knows: knowledge of agents: learned, declared, http or blind.
        calibrated: the scheduler knows the cost model, as after `drawloom profile`.
        picture: write a PNG with the curves over load.
        replicas: number of engines; programs in flight are multiplied by it.
        routing: affine (a program stays with its KV and may migrate with it), sticky (a program
            stays), or scatter (each call goes to the least loaded engine).
    """
    from drawloom.runtime.cli import simulate
    from drawloom.runtime.sim.experiment import Scenario

    scenario = Scenario(
        workload,
        machine,
        pressure,
        host,
        seeds,
        programs,
        knows=knows,
        burst=burst,
        replicas=replicas,
        routing=routing,
        first_seed=first_seed,
        calibrated=calibrated,
        humans=humans,
        waits=waits,
    )
    if load or memory:
        return simulate.curves(scenario, policy, load, memory, picture, json)
    return simulate.main(scenario, policy, json)


@app.command
def doctor(*, json: Json = False) -> int:
    """Check this machine: what is available, and which fallbacks are used."""
    from drawloom.runtime.cli import doctor as examination

    return examination.main(json)


def main() -> int:
    """Run the command line and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="drawloom: %(message)s")
    try:
        return (
            app(sys.argv[1:], result_action="return_value", exit_on_error=False, print_error=False)
            or 0
        )
    except CycloptsError as error:
        return _fail(_one_line(error), 2)
    except KeyboardInterrupt:
        print("drawloom: interrupted; everything was released", file=sys.stderr)
        return 130
    except BudgetExceeded as error:
        return _fail(error, 3)
    except ConfigError as error:
        return _fail(error, 2)
    except DrawloomError as error:
        return _fail(error, 1)


def _one_line(error: CycloptsError) -> str:
    """Return the error of a command line as one line, with the command for its help."""
    chain = " ".join(error.command_chain or ())
    message = " ".join(str(error).split()).rstrip(".?")
    return f"{message}; see: drawloom {chain + ' ' if chain else ''}--help"


def _fail(error: DrawloomError | str, code: int) -> int:
    print(f"drawloom: {error}", file=sys.stderr)
    return code


__all__ = ["app", "main"]
