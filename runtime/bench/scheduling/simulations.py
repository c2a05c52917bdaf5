"""Tables of simulations that only developers of the scheduler need."""

from dataclasses import asdict, replace

from rich.table import Table

from drawloom.runtime.console import output
from drawloom.runtime.sim.ablation import ablate
from drawloom.runtime.sim.columns import COLUMNS
from drawloom.runtime.sim.coscheduling import compare_units
from drawloom.runtime.sim.experiment import Scenario, compare, evictions
from drawloom.runtime.sim.fairness import CLASSES, compare_tenants


def ablation(scenario: Scenario, json: bool) -> int:
    """Print the figures of the policy `drawloom` without each of its parts.

    Raises:
        ConfigError: the workload or machine is unknown.
    """
    found = ablate(scenario)
    if json:
        output.emit({"scenario": asdict(scenario), "variants": found})
        return 0
    table = Table(title=f"drawloom without its parts: {scenario.describe()}")
    table.add_column("variant", no_wrap=True)
    table.add_column("beside", justify="right")
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    whole = found["drawloom"]["jct_mean_s"]
    for name, row in found.items():
        beside = f"{row['jct_mean_s'] / whole - 1:+.1%}"
        table.add_row(name, beside, *(form.format(row[key]) for key, (_, form) in COLUMNS.items()))
    output.console().print(table)
    return 0


def eviction(scenario: Scenario, json: bool) -> int:
    """Print the tokens that each eviction order recomputes, beside the farthest-use optimum.

    Raises:
        ConfigError: the workload or machine is unknown.
    """
    found = evictions(scenario)
    if json:
        output.emit({"scenario": asdict(scenario), "policies": found})
        return 0
    title = f"{scenario.workload} on {scenario.machine_name}, {scenario.pressure:g}, fcfs-lru order"
    table = Table("evicted first", "recomputed", "ratio", title=title)
    names = {"farthest": "farthest next use (reference)", "fcfs-lru": "least recently used"}
    for name, row in found.items():
        tokens = f"{row['recomputed_tokens']:,.0f} tokens"
        table.add_row(names.get(name, name), tokens, f"{row['ratio']:.3f}")
    output.console().print(table)
    return 0


def graphs(scenario: Scenario, policy: str, json: bool) -> int:
    """Print completion times with the execution graph declared, learned, by HTTP, or unknown.

    Raises:
        ConfigError: the workload or machine is unknown.
    """
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
    table = Table("graph", "JCT mean", "p99", "beside blind", title=title)
    for knows, row in found.items():
        seconds = (f"{row[key]:,.0f} s" for key in ("jct_mean_s", "jct_p99_s"))
        table.add_row(knows, *seconds, f"{row['times_blind']:.2f}x")
    output.console().print(table)
    return 0


def unit(scenario: Scenario, json: bool) -> int:
    """Print joint scheduling of KV, environments and tool slots beside separate pools.

    Raises:
        ConfigError: the workload or machine is unknown, or the workload has no environments.
    """

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
    for heading in ("JCT mean", "beside drawloom", "p99", "stretch", "env stall", "env held"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in sorted(found.items(), key=lambda item: item[1]["jct_mean_s"]):
        cells = [
            f"{row['jct_mean_s']:,.0f} s",
            f"{row['times_drawloom']:.2f}x",
            f"{row['jct_p99_s']:,.0f} s",
            f"{row['stretch_max']:,.0f}",
            f"{row['env_stall_s']:,.0f} s",
            f"{row['env_taken_s']:,.0f} s",
        ]
        table.add_row(name, *cells)
    output.console().print(table)
    output.note(
        "Env stall: a program's wait for its environments. Env held: seconds that it had one."
    )
    return 0


def tenants(
    policies: list[str], machine: str, load: float, minutes: float, seeds: int, json: bool
) -> int:
    """Print how many tasks of ten tenants end within 1.5 times their isolated time.

    Args:
        load: share of the saturation rate.
        minutes: simulated minutes in which tasks arrive.

    Raises:
        ConfigError: the policy or machine is unknown.
    """
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


__all__ = ["ablation", "eviction", "graphs", "tenants", "unit"]
