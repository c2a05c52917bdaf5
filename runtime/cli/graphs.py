"""Command `drawloom graph`: learned execution graphs and the accuracy of forecasts."""

from dataclasses import asdict

from rich.table import Table

from drawloom.errors import ConfigError, StoreMissing
from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.runtime.console import output
from drawloom.runtime.store.store import Store


async def main(url: str, agent: str | None, calibration: bool, json: bool) -> int:
    """Print learned execution graphs.

    Args:
        url: the store.
        agent: name of an agent; None prints all.
        calibration: print the accuracy of forecasts instead.
        json: print JSON.

    Raises:
        ConfigError: nothing was learned about the agent.
    """
    graphs = await _read(url)
    if agent is not None:
        if agent not in graphs:
            known = ", ".join(graphs) or "none"
            raise ConfigError(f"nothing was learned of agent {agent!r} in {url}; known: {known}")
        graphs = {agent: graphs[agent]}
    if json:
        found = {name: _calibrations(g) if calibration else _view(g) for name, g in graphs.items()}
        output.emit(found)
        return 0
    if not graphs:
        print("no graphs were learned yet: run a program")
    for name, graph in graphs.items():
        table = _calibration_table(name, graph) if calibration else _table(name, graph)
        output.console().print(table)
    return 0


async def _read(url: str) -> dict[str, ExecutionGraph]:
    try:
        store = Store(url, write=False)
    except StoreMissing:
        return {}
    try:
        saved = await store.graphs()
    finally:
        await store.close()
    return {name: ExecutionGraph.restore(name, data) for name, data in saved.items()}


def _view(graph: ExecutionGraph) -> dict[str, object]:
    return {
        "programs": graph.stats.programs,
        "edges": [[s, t, d["p"]] for s, t, d in graph.transitions.nx.edges(data=True) if d["p"]],
        "steps_left": {
            state: graph.transitions.calls_left(state) for state in graph.transitions.nx
        },
        "seconds": {key: _seconds(graph, key) for key in graph.durations.keys},
    }


def _seconds(graph: ExecutionGraph, key: str) -> list[float | None]:
    return [graph.durations.quantile(key, share) for share in (0.5, 0.95)]


def _table(name: str, graph: ExecutionGraph) -> Table:
    table = Table("from", "to", "p", "calls left", title=f"{name}: {graph.stats.programs} programs")
    for source in graph.transitions.nx:
        left = graph.transitions.calls_left(source)
        ahead = sorted(graph.transitions.probabilities(source).items(), key=lambda item: -item[1])
        for target, p in ahead:
            if p:
                table.add_row(source, target, f"{p:.2f}", "" if left is None else f"{left:.1f}")
    for key in graph.durations.keys:
        half, most = _seconds(graph, key)
        table.add_row(f"tool {key or '(none)'}", f"{half:.2f} s, 95 % within {most:.2f} s", "", "")
    return table


def _calibrations(graph: ExecutionGraph) -> dict[str, object]:
    return {tool: asdict(one) for tool, one in graph.calibrations.items()}


def _calibration_table(name: str, graph: ExecutionGraph) -> Table:
    title = f"{name}: accuracy of forecasts (exact ones have 50 % and 95 %)"
    table = Table(
        "tool", "returns", "within p50", "within p95", "most likely next", "predicted", title=title
    )
    for tool, one in graph.calibrations.items():
        shares = (
            one.within_p50 / max(1, one.returns),
            one.within_p95 / max(1, one.returns),
            one.likeliest / max(1, one.places),
            one.chance / max(1, one.places),
        )
        table.add_row(tool or "(none)", str(one.returns), *(f"{share:.0%}" for share in shares))
    return table


__all__ = ["main"]
