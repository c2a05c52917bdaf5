"""Results of the demo: its progress, its table, its JSON object and its pictures."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table

from drawloom.runtime.console import output
from drawloom.runtime.console.timeline import Activity
from drawloom.runtime.console.timeline_render import Panel, save_html, save_png
from drawloom.runtime.demo.run import POLICIES, Outcome, Progress

_TITLES = {
    "fcfs-lru": "Each call scheduled alone (fcfs-lru)",
    "drawloom": "Each program scheduled as one unit (drawloom)",
}
# keys of `spent_s`, their labels, and why drawloom spends less there
_ACTIVITIES = (
    ("held", "waiting for admission", "drawloom admits what its memory can hold to the end"),
    ("queued", "calls waiting at the engine", "nothing is recomputed, so the queue is short"),
    ("prefill", "prefill: new tokens", ""),
    ("recompute", "prefill: recomputed tokens", "KV cache is kept while a tool runs"),
    ("decode", "decode", "steps are not shared with the prompts of others"),
    ("env", "waiting for a container", "made before the start, under both policies"),
    ("tool", "running tools", "the same commands, on a less busy machine"),
    ("other", "other", ""),
)


@contextlib.contextmanager
def show_progress(quiet: bool) -> Iterator[Progress]:
    """Show bars on a terminal, and a line for each round elsewhere.

    Args:
        quiet: standard output is for JSON, so lines go to standard error.
    """
    if quiet or not sys.stdout.isatty():
        yield _print_rounds(sys.stderr if quiet else sys.stdout)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TextColumn("{task.fields[now]}"), TimeElapsedColumn()) as bars:
        known: dict[tuple[str, int], Any] = {}

        def report(policy: str, index: int, total: int, started: int, ended: int) -> None:
            key = (policy, index)
            if key not in known:
                known[key] = bars.add_task(f"round {index + 1}  {policy}", total=total, now="")
            now = f"{started - ended} running, {total - started} to come"
            now = now if started else "starting containers"
            bars.update(known[key], completed=ended, now=now if ended < total else "done")

        yield report


def _print_rounds(stream: TextIO) -> Progress:
    def report(policy: str, index: int, total: int, started: int, ended: int) -> None:
        if ended == total:
            print(f"round {index + 1}  {policy}: {total} programs done", file=stream, flush=True)

    return report


def summarise(outcomes: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Return the object that ``drawloom demo --json`` prints.

    Times and counts of a policy are those of its median round by mean completion time.
    """
    middle = {policy: _median_round(rounds) for policy, rounds in outcomes.items()}
    reference = outcomes[POLICIES[0]][0].answers
    equal = all(o.answers == reference for rounds in outcomes.values() for o in rounds)
    first = next(iter(middle.values()))
    return {
        "programs": len(first.answers),
        "policies": {policy: _row(outcome, equal) for policy, outcome in middle.items()},
        "jct_mean_s_by_round": {
            policy: [o.jct_mean for o in rounds] for policy, rounds in outcomes.items()
        },
    }


def _median_round(rounds: list[Outcome]) -> Outcome:
    return sorted(rounds, key=lambda outcome: outcome.jct_mean)[len(rounds) // 2]


def _row(outcome: Outcome, equal: bool) -> dict[str, Any]:
    stats = outcome.stats
    hidden = 1 - outcome.env_stall / outcome.env_cold if outcome.env_cold else None
    return {
        "solved": outcome.solved,
        "answers_equal": equal,
        "jct_mean_s": outcome.jct_mean,
        "jct_p95_s": _quantile(outcome.jct, 0.95),
        "ttft_p99_s": _quantile(outcome.ttft, 0.99),
        "prompt_tokens": stats.cache.prompt_tokens,
        "recomputed_tokens": stats.cache.recomputed_tokens,
        "prefix_hit_tokens": stats.cache.hit_tokens,
        "env_claims": outcome.env_claims,
        "env_warm_claims": outcome.env_warm_claims,
        "env_wait_hidden": hidden,
        "env_idle_s": outcome.env_idle,
        "spent_s": outcome.spent,
    }


def _quantile(values: tuple[float, ...], share: float) -> float:
    """Return the nearest-rank quantile; 0 if there are no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def print_summary(summary: Mapping[str, Any], pictures: list[Path], json: bool) -> None:
    """Print completion times and their parts, as a table or as JSON."""
    if json:
        output.emit(summary)
        return
    console, policies = output.console(), summary["policies"]
    before, after = policies.values()
    table = Table(title=f"{summary['programs']} programs, median of the rounds")
    table.add_column("")
    for policy in policies:
        table.add_column(policy, justify="right")
    table.add_column("")

    def row(label: str, first: float, second: float, form: str, why: str = "") -> None:
        table.add_row(label, form.format(first), form.format(second), why)

    row("programs solved", before["solved"], after["solved"], "{:d}")
    for key, label in (("jct_mean_s", "completion time, mean"), ("jct_p95_s", "  p95")):
        ratio = before[key] / max(after[key], 1e-9)
        row(label, before[key], after[key], "{:.2f} s", f"[bold]{ratio:.1f}x[/bold]")
    table.add_section()
    for key, label, why in _ACTIVITIES:
        row(f"  {label}", before["spent_s"][key], after["spent_s"][key], "{:.2f} s", why)
    table.add_section()
    row("prompt tokens", before["prompt_tokens"], after["prompt_tokens"], "{:,d}")
    row("  recomputed", before["recomputed_tokens"], after["recomputed_tokens"], "{:,d}")
    console.print(table)
    equal = all(policy["answers_equal"] for policy in policies.values())
    console.print("answers: " + ("identical under both policies" if equal else "[red]they differ"))
    for path in pictures:
        console.print(f"picture: {path.resolve()}")


def save_pictures(outcomes: dict[str, list[Outcome]], folder: Path) -> list[Path]:
    """Write ``demo.html`` and ``demo.png`` into a folder and return their paths."""
    panels = _panels(outcomes)
    heading = (
        f"The same {len(panels[0].tracks)} agent programs twice, one row each, "
        f"on {os.cpu_count()} cores"
    )
    page, image = folder / "demo.html", folder / "demo.png"
    save_html(page, panels, heading)
    save_png(image, panels, heading)
    return [page, image]


def _panels(outcomes: dict[str, list[Outcome]]) -> list[Panel]:
    """Return the timelines of each policy's median round."""
    panels = []
    for policy, rounds in outcomes.items():
        outcome = _median_round(rounds)
        note = (
            f"{outcome.stats.cache.recomputed_tokens:,} prompt tokens were recomputed; "
            f"a call queued for {outcome.spent['queued'] / _calls(outcome):.2f} s"
        )
        title = f"{_TITLES[policy]}: {outcome.jct_mean:.1f} s for a program, on average"
        panels.append(Panel(title, note, outcome.tracks))
    return panels


def _calls(outcome: Outcome) -> float:
    """Return the mean number of LLM calls of a program."""
    calls = sum(b.activity is Activity.DECODE for t in outcome.tracks for b in t.bars)
    return max(1.0, calls / max(1, len(outcome.tracks)))


__all__ = ["print_summary", "save_pictures", "show_progress", "summarise"]
