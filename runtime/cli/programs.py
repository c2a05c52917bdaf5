"""Commands on programs: run, mcp, resume, ps, trace."""

import importlib
import importlib.util
import inspect
import sys
import typing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.table import Table
from rich.text import Text

from drawloom.errors import (
    BudgetExceeded,
    ConfigError,
    DrawloomError,
    ReplayMismatch,
    StoreMissing,
)
from drawloom.graph.declared_graph import Graph
from drawloom.runtime.cli.options import EngineOptions
from drawloom.runtime.console import output
from drawloom.runtime.console.timeline import read_track
from drawloom.runtime.console.timeline_render import terminal
from drawloom.runtime.execution.agent import Agent
from drawloom.runtime.sdk.graph_agent import graph_agent
from drawloom.runtime.sdk.run import Run
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.runtime.store.store import Store
from drawloom.tools.tool import Tool


@dataclass(frozen=True, slots=True)
class Options:
    """Collect the options of `run`, `mcp` and `resume` for the runtime."""

    model: str
    store: str
    policy: str
    sandbox: str
    engine: EngineOptions

    def runtime(self) -> Runtime:
        """Return a runtime with these options, not yet open."""
        return Runtime(
            self.model,
            store=self.store,
            policy=self.policy,
            sandbox=self.sandbox,
            engine=self.engine.config(),
        )


def _load(entry: str, what: str) -> tuple[str, str, Any]:
    """Import ``module:name`` or ``path.py:name``; return module, name and value.

    Args:
        entry: the entry.
        what: the expected thing, for the error.

    Raises:
        ConfigError: the entry is malformed or cannot be imported.
    """
    place, found, name = entry.rpartition(":")
    if not found or not place or not name:
        raise ConfigError(f"{entry!r} is not {what}: write module:name or path/to/file.py:name")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    except (ImportError, SyntaxError, OSError) as error:
        raise ConfigError(f"{place} cannot be imported: {error}") from None
    return place, name, getattr(module, name, None)


def load_tool(entry: str) -> Tool[..., Any]:
    """Return the tool at ``module:name`` or ``path.py:name``.

    Raises:
        ConfigError: there is no such tool.
    """
    place, name, value = _load(entry, "a tool")
    if not isinstance(value, Tool):
        raise ConfigError(f"{place} has no tool {name!r}: decorate it with @tool")
    return value


def load_agent(entry: str) -> Agent[..., Any]:
    """Return the agent at ``module:name`` or ``path.py:name``.

    Raises:
        ConfigError: there is no such agent.
    """
    place, name, value = _load(entry, "an agent")
    if isinstance(value, Graph):
        value = graph_agent(value)
    if not isinstance(value, Agent):
        raise ConfigError(f"{place} has no agent {name!r}: decorate it with @agent")
    value.entry = f"{Path(place).resolve()}:{name}" if place.endswith(".py") else entry
    return value


def _load_module(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(name)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    return module


def read_arguments(agent: Agent[..., Any], words: list[str]) -> dict[str, Any]:
    """Convert ``--name value`` pairs to the types of the agent's parameters.

    Raises:
        ConfigError: an argument is unknown, missing or malformed.
    """
    parameters = inspect.signature(agent.fn).parameters
    hints = typing.get_type_hints(agent.fn)
    given: dict[str, Any] = {}
    rest = list(words)
    while rest:
        flag = rest.pop(0)
        name, equals, value = flag.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not flag.startswith("--") or name not in parameters:
            known = " ".join(f"--{p}" for p in parameters) or "no arguments"
            raise ConfigError(f"agent {agent.name} has no {flag!r}; it takes {known}")
        if not equals:
            if not rest:
                raise ConfigError(f"--{name} needs a value")
            value = rest.pop(0)
        given[name] = _convert(name, hints.get(name, str), value)
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
    if missing:
        raise ConfigError(f"agent {agent.name} needs {' '.join(f'--{n} …' for n in missing)}")
    return given


def _convert(name: str, kind: Any, value: str) -> Any:
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        plain = error.errors()[0]["msg"]
    try:
        return adapter.validate_json(value)
    except ValidationError as error:
        # for text that is not JSON the message about JSON's syntax does not help
        structured = error.errors()[0]
        message = plain if structured["type"] == "json_invalid" else structured["msg"]
        raise ConfigError(f"--{name} {value!r}: {message}") from None


async def run(entry: str, words: list[str], options: Options, json: bool) -> int:
    """Run an agent and print its result."""
    agent = load_agent(entry)
    arguments = read_arguments(agent, words)
    async with options.runtime() as runtime:
        return await _finish(await runtime.start(agent, **arguments), json)


async def serve_tools(entries: list[str], options: Options) -> int:
    """Serve tools over MCP until the client disconnects."""
    try:
        from drawloom.runtime.server.mcp_server import ToolServer
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'drawloom[mcp]'") from None
    tools = [load_tool(entry) for entry in entries]
    async with options.runtime() as runtime:
        await ToolServer(runtime, tools).serve()
    return 0


async def resume(
    program: str, given: dict[str, str | None], url: str, engine: EngineOptions, json: bool
) -> int:
    """Resume a program and print its result.

    Args:
        program: id of the program.
        given: model, policy and sandbox; None takes that of the program's start.
        url: the store.
        engine: options of the engine.
        json: print JSON.
    """
    reader = Store(url, write=False)
    try:
        row = await reader.program(program)
    finally:
        await reader.close()
    agent = load_agent(row.entry)
    began = {name: str(value or row.options.get(name) or "") for name, value in given.items()}
    if not began["model"]:
        raise ConfigError(f"program {program} was started with a custom engine: give --model")
    options = Options(began["model"], url, began["policy"], began["sandbox"] or "auto", engine)
    async with options.runtime() as runtime:
        return await _finish(await runtime.resume(agent, program), json)


async def _finish(run: Run[Any], json: bool) -> int:
    if not json:
        print(f"program {run.id}", file=sys.stderr, flush=True)
    try:
        result = await run.result()
    except BudgetExceeded:
        raise
    except ReplayMismatch as error:
        raise ReplayMismatch(f"{error}; the program stays interrupted") from None
    except DrawloomError as error:
        raise type(error)(f"program {run.id} failed: {error}") from None
    except Exception as error:
        raise DrawloomError(f"program {run.id} failed: {type(error).__name__}: {error}") from error
    if json:
        output.emit({"program": run.id, "result": result})
    else:
        print(result)
    return 0


async def ps(url: str, limit: int, json: bool) -> int:
    """Print the programs of a store, the newest first."""
    try:
        store = Store(url, write=False)
    except StoreMissing:
        output.emit([]) if json else print("no program was ever run here")
        return 0
    try:
        rows, owned = await store.programs(limit), await store.is_owned()
    finally:
        await store.close()
    # an open program of a store without an owner runs nowhere and waits for `drawloom resume`
    rows = [replace(r, status="interrupted") if r.open and not owned else r for r in rows]
    if json:
        names = ("id", "agent", "status", "created", "started", "ended", "result", "error")
        output.emit([{name: getattr(row, name) for name in names} for row in rows])
        return 0
    table = Table("program", "agent", "status", "created", "seconds", "result")
    for row in rows:
        took = f"{row.ended - row.created:.2f}" if row.ended else ""
        created = datetime.fromtimestamp(row.created).strftime("%Y-%m-%d %H:%M:%S")
        outcome = str(row.error or ("" if row.result is None else row.result))[:60]
        table.add_row(row.id, row.agent, row.status, created, took, Text(outcome))
    output.console().print(table)
    return 0


async def trace(program: str, url: str, json: bool) -> int:
    """Print the timeline of a program."""
    store = Store(url, write=False)
    try:
        track = await read_track(store, program)
        decisions = await store.decisions(program)
    finally:
        await store.close()
    if json:
        bars = [
            {"activity": b.activity.value, "start": b.start, "end": b.end, "label": b.label}
            for b in track.bars
        ]
        made = [{"at": d.at, "kind": d.kind, **d.detail} for d in decisions]
        about = {"program": program, "status": track.status, "error": track.error}
        output.emit(about | {"bars": bars, "decisions": made})
        return 0
    out = output.console()
    out.print(
        f"{track.program}  {track.agent}  {track.status}  {track.ended - track.created:.2f} s"
    )
    if track.error is not None:
        out.print(Text(track.error), style="red")
    for words, line in terminal(track):
        out.print(f"{words:>22} ", line, end="\n")
    table = Table("at", "duration", "activity", "")
    for bar in track.bars:
        at, took = bar.start - track.created, bar.end - bar.start
        table.add_row(f"{at:.3f}", f"{took * 1000:.0f} ms", bar.activity.value, Text(bar.label))
    out.print(table)
    return 0


__all__ = ["Options", "load_agent", "ps", "read_arguments", "resume", "run", "trace"]
