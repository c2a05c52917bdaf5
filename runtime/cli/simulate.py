"""Command `drawloom sim`: policies compared in simulation."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table

from drawloom.errors import ConfigError
from drawloom.runtime.console import output
from drawloom.runtime.console.completion_plot import save_lines
from drawloom.runtime.scheduler.policies import policy_names
from drawloom.runtime.sim.columns import COLUMNS
from drawloom.runtime.sim.experiment import Scenario, compare
from drawloom.runtime.sim.load_curves import Point, over_load
from drawloom.runtime.sim.oracle import Clairvoyant, fastest, knowable


def main(scenario: Scenario, policy: str, json: bool) -> int:
    """Print the figures of several policies on one workload.

    Args:
        scenario: the workload and its machine.
        policy: names separated by commas, or all.
        json: print JSON.

    Raises:
        ConfigError: the workload, machine or policy is unknown.
    """
    everybody = [*policy_names(), Clairvoyant.name]
    chosen = everybody if policy == "all" else [name.strip() for name in policy.split(",")]

    def progress(name: str, seconds: float) -> None:
        if not json:
            output.note(f"{name}: mean JCT {seconds:,.0f} s")

    found = compare(scenario, chosen, progress)
    if json:
        output.emit({"scenario": asdict(scenario), "policies": found})
        return 0
    shown = dict(COLUMNS)
    groups = [key for key in next(iter(found.values())) if key.startswith("jct_mean_s, ")]
    shown |= {key: (key.partition(", ")[2], "{:,.0f} s") for key in groups}
    if scenario.replicas > 1:
        shown["moves"] = ("moves", "{:.1f}")
    table = Table(title=scenario.describe())
    table.add_column("policy", no_wrap=True)
    for heading, _ in shown.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in sorted(found.items(), key=lambda item: item[1]["jct_mean_s"]):
        table.add_row(name, *(form.format(row[key]) for key, (_, form) in shown.items()))
    output.console().print(table)
    jobs, engine = scenario.population(), scenario.engine()
    share = knowable(jobs, engine.cost)
    output.note(
        f"A policy without foresight can reach at most {share:.0%} of the clairvoyant's gain."
    )
    output.note(
        f"Upper bound of any schedule: {scenario.replicas * fastest(jobs, engine):,.0f} tokens/s, "
        "with memory always full."
    )
    output.note(
        "TTFT: of later calls. Recomputed: share of new tokens. SLO: JCT within 1.5x isolated time."
    )
    return 0


_CURVE = {
    "jct_mean_s": ("JCT mean", "{:,.1f} s"),
    "jct_p99_s": ("p99", "{:,.0f} s"),
    "ttft_p99_s": ("TTFT p99", "{:,.1f} s"),
    "stretch_max": ("stretch", "{:,.0f}"),
    "busy_share": ("busy", "{:.0%}"),
}


def curves(
    scenario: Scenario, policy: str, load: str, memory: str, picture: Path | None, json: bool
) -> int:
    """Print completion times over load and memory.

    Args:
        scenario: the workload and its machine.
        policy: names separated by commas, or all.
        load: shares of the saturation rate, separated by commas.
        memory: values of pressure, separated by commas.
        picture: write a PNG with the curves.
        json: print JSON.

    Raises:
        ConfigError: an argument is malformed or unknown.
    """
    loads, memories = _numbers("load", load), _numbers("memory", memory)
    chosen = [name.strip() for name in policy.split(",")]
    everybody = [*policy_names(), Clairvoyant.name]

    def progress(point: Point) -> None:
        if not json:
            best = min(point.policies, key=lambda name: point.policies[name]["jct_mean_s"])
            output.note(f"memory {point.memory:g}, load {point.load:g}: {best} is first")

    names = everybody if policy == "all" else chosen
    points = over_load(scenario, names, loads, memories, progress)
    if picture is not None:
        _draw(picture, scenario, points)
    if json:
        output.emit({"scenario": asdict(scenario), "points": [asdict(point) for point in points]})
        return 0
    title = replace(scenario, pressure=0.0).describe().replace(", no limit", "")
    table = Table("memory", "load", "policy", title=title)
    for heading, _ in _CURVE.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        where = f"{point.memory:g}", f"{point.load:g}" if point.load else "backlog"
        rows = sorted(point.policies.items(), key=lambda item: item[1]["jct_mean_s"])
        for name, row in rows:
            table.add_row(*where, name, *(form.format(row[k]) for k, (_, form) in _CURVE.items()))
        table.add_section()
    output.console().print(table)
    output.note("Load: arrival rate over the saturation rate (the best of fcfs-lru and a cap).")
    return 0


def _numbers(name: str, text: str) -> list[float]:
    """Read positive numbers separated by commas.

    Raises:
        ConfigError: a part is not a positive number.
    """
    try:
        found = [float(part) for part in text.split(",") if part]
    except ValueError:
        raise ConfigError(f"--{name} {text}: write numbers separated by commas") from None
    if any(number <= 0 for number in found):
        raise ConfigError(f"--{name} {text}: every number must be above 0")
    return found


def _draw(path: Path, scenario: Scenario, points: Sequence[Point]) -> None:
    """Draw mean completion times over load, or over memory if there is one load."""
    by_load = len({point.load for point in points}) > 1
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        for name, row in point.policies.items():
            kind = name.partition(":")[0]
            line = f"{kind}, {point.memory:g}" if by_load else kind
            lines.setdefault(line, []).append(
                (point.load if by_load else point.memory, row["jct_mean_s"])
            )
    axis = "load" if by_load else "capacity over working set"
    save_lines(path, scenario.workload, f"mean seconds to completion, by {axis}", lines)


__all__ = ["curves", "main"]
