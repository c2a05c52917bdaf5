"""Summarise measurements as figures, tables and lines of a picture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from rich.table import Table

from drawloom.runtime.bench.rivals.client import Played
from drawloom.runtime.bench.rivals.speed import UNITS

BASE = "vllm"  # what ratios are to


@dataclass(frozen=True, slots=True)
class Load:
    """Identify a load: a workload, how its history is kept, and its programs at once."""

    workload: str
    history: str
    programs: int


@dataclass(frozen=True, slots=True)
class Run:
    """Hold the calls of one system under one load in one round."""

    load: Load
    system: str
    round: int
    played: tuple[Played, ...]
    makespan: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Summarise one system under one load over all rounds, in seconds and tokens.

    `computed` prompt tokens were not cached, a round; `first`: seconds to the first text of calls
    but the first of each program; `ratio`: vLLM's mean JCT over this one, 0 where it has none.
    """

    jct_mean: float
    jct_p95: float
    makespan: float
    first_p50: float
    first_p95: float
    computed: float
    cached_share: float
    steps_per_min: float
    failed: int
    ratio: float = 0.0


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that `share` of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def figures(runs: Sequence[Run]) -> Figures:
    """Sum up the rounds of one system under one load. Programs that failed have no JCT."""
    played = [one for run in runs for one in run.played]
    jcts = [one.seconds for one in played if not one.error]
    calls = [call for one in played for call in one.calls]
    later = [call.first for one in played for call in one.calls[1:]]
    prompt = sum(call.prompt for call in calls)
    cached = sum(call.cached for call in calls)
    makespan = fmean(run.makespan for run in runs)
    return Figures(
        jct_mean=fmean(jcts) if jcts else 0.0,
        jct_p95=quantile(jcts, 0.95),
        makespan=makespan,
        first_p50=quantile(later, 0.5),
        first_p95=quantile(later, 0.95),
        computed=(prompt - cached) / len(runs),
        cached_share=cached / prompt if prompt else 0.0,
        steps_per_min=60 * len(calls) / len(runs) / makespan if makespan else 0.0,
        failed=sum(bool(one.error) for one in played),
    )


def summary(runs: Sequence[Run]) -> dict[Load, dict[str, Figures]]:
    """Return the figures by load and system, in the order in which they were first played."""
    found: dict[Load, dict[str, Figures]] = {}
    for load in dict.fromkeys(run.load for run in runs):
        here = [run for run in runs if run.load == load]
        names = dict.fromkeys(run.system for run in here)
        found[load] = {n: figures([run for run in here if run.system == n]) for n in names}
        base = found[load].get(BASE)
        if base is not None:
            for name, one in found[load].items():
                ratio = base.jct_mean / one.jct_mean if one.jct_mean else 0.0
                found[load][name] = Figures(**asdict(one) | {"ratio": ratio})
    return found


_SHOWN = {
    "jct_mean": ("JCT mean", "{:.1f}"),
    "jct_p95": ("p95", "{:.1f}"),
    "makespan": ("makespan", "{:.1f}"),
    "first_p50": ("TTFT p50", "{:.2f}"),
    "first_p95": ("p95", "{:.2f}"),
    "computed": ("computed", "{:,.0f}"),
    "cached_share": ("cached", "{:.0%}"),
    "steps_per_min": ("steps/min", "{:.0f}"),
    "failed": ("failed", "{:d}"),
    "ratio": ("× vLLM", "{:.2f}"),
}


def agents_table(found: Mapping[Load, Mapping[str, Figures]], title: str) -> Table:
    """Make a table with a row for each system under each load."""
    table = Table("workload", "history", "programs", "system", title=title)
    for heading, _ in _SHOWN.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for load, systems in found.items():
        table.add_section()
        for name, one in systems.items():
            cells = (form.format(getattr(one, key)) for key, (_, form) in _SHOWN.items())
            table.add_row(load.workload, load.history, f"{load.programs}", name, *cells)
    return table


# --- engine-only rows -----------------------------------------------------------------------

Speeds = Mapping[str, Mapping[str, Sequence[float]]]  # system -> row -> one figure a round


def best(row: str, values: Iterable[float]) -> float:
    """Return the best figure of a row: the most tokens a second, the least time."""
    return max(values) if UNITS[row] == "tokens/s" else min(values)


def speeds(found: Speeds) -> dict[str, dict[str, float]]:
    """Return the best figure of all rounds by row and system, and our ratio to the best rival."""
    rows: dict[str, dict[str, float]] = {}
    for row in UNITS:
        here = {name: best(row, rounds[row]) for name, rounds in found.items() if rounds.get(row)}
        others = [value for name, value in here.items() if not name.startswith("drawloom")]
        ours = here.get("drawloom")
        if ours and others:
            other = best(row, others)
            here["ratio"] = ours / other if UNITS[row] == "tokens/s" else other / ours
        if here:
            rows[row] = here
    return rows


def speeds_table(found: Speeds, title: str) -> Table:
    """Make a table of the engine-only rows."""
    rows = speeds(found)
    names = list(found)
    table = Table("", "unit", *names, "ours / best", title=title)
    for row, values in rows.items():
        cells = [f"{values[name]:,.4g}" if name in values else "" for name in names]
        ratio = f"{values['ratio']:.2f}" if "ratio" in values else ""
        table.add_row(row, UNITS[row], *cells, ratio)
    return table


# --- as JSON and lines ----------------------------------------------------------------------


def plain(
    about: Mapping[str, Any], runs: Sequence[Run], speed: Speeds, failed: Mapping[str, str]
) -> dict[str, Any]:
    """Return everything as JSON has it: figures, and each program of each run."""
    agents = [
        asdict(load) | {"system": name} | asdict(one)
        for load, systems in summary(runs).items()
        for name, one in systems.items()
    ]
    each = [
        asdict(run.load)
        | {"system": run.system, "round": run.round, "makespan": run.makespan}
        | {"played": [asdict(one) for one in run.played]}
        for run in runs
    ]
    return {
        "about": dict(about),
        "agents": agents,
        "speed": speeds(speed),
        "not_started": dict(failed),
        "runs": each,
    }


def lines(found: Mapping[Load, Mapping[str, Figures]]) -> dict[str, list[tuple[float, float]]]:
    """Return mean JCT over programs, a line for each system and workload."""
    drawn: dict[str, list[tuple[float, float]]] = {}
    kinds = {(load.workload, load.history) for load in found}
    for load, systems in found.items():
        for name, one in systems.items():
            label = name if len(kinds) == 1 else f"{name}, {load.workload}, {load.history}"
            drawn.setdefault(label, []).append((load.programs, one.jct_mean))
    return {label: sorted(points) for label, points in drawn.items()}


__all__ = [
    "BASE",
    "Figures",
    "Load",
    "Run",
    "agents_table",
    "figures",
    "lines",
    "plain",
    "quantile",
    "speeds",
    "speeds_table",
    "summary",
]
