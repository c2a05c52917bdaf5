"""`drawloom sim`."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table

from drawloom.errors import ConfigError
from drawloom.runtime.console import output
from drawloom.runtime.console.completion_plot import save_lines
from drawloom.runtime.scheduler.policies import policy_names
from drawloom.runtime.sim.ablation import ablate
from drawloom.runtime.sim.coscheduling import compare_units
from drawloom.runtime.sim.experiment import Scenario, compare, evictions
from drawloom.runtime.sim.fairness import CLASSES, compare_tenants
from drawloom.runtime.sim.load_curves import Point, over_load
from drawloom.runtime.sim.oracle import Clairvoyant, fastest, knowable

_SHOWN = {
    "jct_mean_s": ("JCT mean", "{:,.0f} s"),
    "jct_p50_s": ("p50", "{:,.0f} s"),
    "jct_p99_s": ("p99", "{:,.0f} s"),
    "jct_less_gaps_mean_s": ("less gaps", "{:,.0f} s"),
    "admission_mean_s": ("admission", "{:,.0f} s"),
    "ttft_p50_s": ("TTFT p50", "{:,.2f} s"),
    "ttft_p99_s": ("p99", "{:,.1f} s"),
    "tokens_per_s": ("tokens/s", "{:,.0f}"),
    "recomputed_share": ("recomputed", "{:.1%}"),
    "hit_share": ("hits", "{:.0%}"),
    "slo_share": ("SLO", "{:.0%}"),
    "stretch_max": ("stretch", "{:,.0f}"),
}


def main(scenario: Scenario, policy: str, json: bool) -> int:
    """Raises `ConfigError` for a workload, machine or policy that there is not."""
    everybody = [*policy_names(), Clairvoyant.name]
    chosen = everybody if policy == "all" else [name.strip() for name in policy.split(",")]

    def progress(name: str, seconds: float) -> None:
        if not json:
            output.note(f"{name}: mean JCT {seconds:,.0f} s")

    found = compare(scenario, chosen, progress)
    if json:
        output.emit({"scenario": asdict(scenario), "policies": found})
        return 0
    shown = dict(_SHOWN)
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
        f"Whoever knows no future can win at most {share:.0%} of what the clairvoyant's order wins."
    )
    output.note(
        f"No schedule makes more than {scenario.replicas * fastest(jobs, engine):,.0f} tokens a "
        "second of such programs here, were memory always full."
    )
    output.note("TTFT: of later calls. Recomputed: of new tokens. SLO: JCT within 1.5 times alone.")
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
    """Print completion times over load and memory. Raises `ConfigError`."""
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
    output.note("Load: arrivals over what a backlog ends under the best of fcfs-lru and a cap.")
    return 0


def _numbers(name: str, text: str) -> list[float]:
    """Raises `ConfigError`."""
    try:
        found = [float(part) for part in text.split(",") if part]
    except ValueError:
        raise ConfigError(f"--{name} {text}: write numbers with commas between them") from None
    if any(number <= 0 for number in found):
        raise ConfigError(f"--{name} {text}: every number is above 0")
    return found


def _draw(path: Path, scenario: Scenario, points: Sequence[Point]) -> None:
    """Draw mean completion times over load, or over memory where there is one load."""
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


def ablation(scenario: Scenario, json: bool) -> int:
    """Print the figures of the policy without each of its parts. Raises `ConfigError`."""
    found = ablate(scenario)
    if json:
        output.emit({"scenario": asdict(scenario), "variants": found})
        return 0
    table = Table(title=f"drawloom without its parts: {scenario.describe()}")
    table.add_column("variant", no_wrap=True)
    table.add_column("beside", justify="right")
    for heading, _ in _SHOWN.values():
        table.add_column(heading, justify="right", no_wrap=True)
    whole = found["drawloom"]["jct_mean_s"]
    for name, row in found.items():
        beside = f"{row['jct_mean_s'] / whole - 1:+.1%}"
        table.add_row(name, beside, *(form.format(row[key]) for key, (_, form) in _SHOWN.items()))
    output.console().print(table)
    return 0


def eviction(scenario: Scenario, json: bool) -> int:
    """Raises `ConfigError` for a workload or machine that there is not."""
    found = evictions(scenario)
    if json:
        output.emit({"scenario": asdict(scenario), "policies": found})
        return 0
    title = f"{scenario.workload} on {scenario.machine_name}, {scenario.pressure:g}, fcfs-lru order"
    table = Table("gives up", "prefilled again", "ratio", title=title)
    names = {"farthest": "what is used last (reference)", "fcfs-lru": "what was used first"}
    for name, row in found.items():
        tokens = f"{row['recomputed_tokens']:,.0f} tokens"
        table.add_row(names.get(name, name), tokens, f"{row['ratio']:.3f}")
    output.console().print(table)
    return 0


def graphs(scenario: Scenario, policy: str, json: bool) -> int:
    """Raises `ConfigError` for a workload or machine that there is not."""
    found = {
        knows: compare(replace(scenario, knows=knows), [policy])[policy]
        for knows in ("declared", "learned", "http", "blind")
    }
    blind = found["blind"]["jct_mean_s"]
    for row in found.values():
        row["times_blind"] = blind / row["jct_mean_s"]
    if json:
        output.emit({"scenario": asdict(scenario), "policy": policy, "knows": found})
        return 0
    title = f"{scenario.workload} under {policy}, after {scenario.skip} programs"
    table = Table("its graph is", "JCT mean", "p99", "beside blind", title=title)
    for knows, row in found.items():
        seconds = (f"{row[key]:,.0f} s" for key in ("jct_mean_s", "jct_p99_s"))
        table.add_row(knows, *seconds, f"{row['times_blind']:.2f}x")
    output.console().print(table)
    return 0


def unit(scenario: Scenario, json: bool) -> int:
    """Raises `ConfigError` for a workload or machine that there is not, or without environments."""

    def progress(name: str, seconds: float) -> None:
        if not json:
            output.note(f"{name}: mean JCT {seconds:,.0f} s")

    found = compare_units(scenario, progress)
    ours = found["drawloom"]["jct_mean_s"]
    for row in found.values():
        row["times_drawloom"] = row["jct_mean_s"] / ours
    if json:
        output.emit({"scenario": asdict(scenario), "policies": found})
        return 0
    title = f"{scenario.workload}, environments for a third, tool slots for a fifth"
    table = Table(title=title)
    table.add_column("policy", no_wrap=True)
    for heading in ("JCT mean", "beside drawloom", "p99", "stretch", "env stall", "in a place"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in sorted(found.items(), key=lambda item: item[1]["jct_mean_s"]):
        table.add_row(
            name, f"{row['jct_mean_s']:,.0f} s", f"{row['times_drawloom']:.2f}x",
            f"{row['jct_p99_s']:,.0f} s", f"{row['stretch_max']:,.0f}",
            f"{row['env_stall_s']:,.0f} s", f"{row['env_taken_s']:,.0f} s",
        )  # fmt: skip
    output.console().print(table)
    output.note("Env stall: a program's wait for its environment. In a place: what it took of one.")
    return 0


def tenants(
    policies: list[str], machine: str, load: float, minutes: float, seeds: int, json: bool
) -> int:
    """Raises `ConfigError` for a policy or machine that there is not."""
    found = compare_tenants([name.strip() for name in policies], machine, load, minutes, seeds)
    if json:
        output.emit({"machine": machine, "load": load, "policies": found})
        return 0
    first = next(iter(found.values()))
    title = (
        f"{first['tasks']:,.0f} tasks of ten tenants on {machine} at {load:.0%} of the saturation "
        f"rate ({first['saturation_per_min']:.2f} a minute, batch {first['saturation_batch']:.0f})"
    )
    table = Table("within 1.5x", *CLASSES, "all", "stretch mean", "p99", title=title)
    for name, row in found.items():
        shares = [row[f"slo_{kind}"] for kind in CLASSES] + [row["slo"]]
        stretch = (f"{row[key]:.2f}" for key in ("stretch_mean", "stretch_p99"))
        table.add_row(name, *(f"{share:.1%}" for share in shares), *stretch)
    output.console().print(table)
    return 0


__all__ = ["curves", "eviction", "graphs", "main", "tenants", "unit"]
