"""What commands print: progress on a terminal, plain lines elsewhere, JSON when asked."""

import contextlib
import json as js
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.table import Table

from drawloom.runtime.demo.run import Progress

_WIDTH = 160


def console() -> Console:
    """Standard output; as wide as a table needs where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def emit(data: Any) -> None:
    """One JSON value on stdout."""
    print(js.dumps(to_jsonable_python(data, fallback=str), indent=2))


def note(words: str) -> None:
    """A line for whoever watches, beside the output."""
    print(f"drawloom: {words}", file=sys.stderr, flush=True)


def log_to_stderr(name: str) -> None:
    """Print what a logger says at INFO, with the time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False


@contextlib.contextmanager
def demo_progress(quiet: bool) -> Iterator[Progress]:
    """Hears of every program that starts or ends."""
    if quiet or not sys.stdout.isatty():
        yield _lines(sys.stderr if quiet else sys.stdout)
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
            now = now if started else "containers are made"
            bars.update(known[key], completed=ended, now=now if ended < total else "done")

        yield report


def _lines(stream: Any) -> Progress:
    def report(policy: str, index: int, total: int, started: int, ended: int) -> None:
        if ended == total:
            print(f"round {index + 1}  {policy}: {total} programs done", file=stream, flush=True)

    return report


_SPENT = (
    ("held", "held until there is room", "drawloom starts what its memory can hold to the end"),
    ("queued", "calls waiting for their turn", "nothing is computed twice, so the queue is short"),
    ("prefill", "computing prompts: new tokens", ""),
    ("recompute", "computing prompts: once more", "KV cache is kept while a tool runs"),
    ("decode", "writing answers", "steps are not shared with the prompts of others"),
    ("env", "waiting for a container", "made before the start, for both"),
    ("tool", "running tools", "the same commands, on a less busy machine"),
    ("other", "anything else", ""),
)


def demo(summary: dict[str, Any], pictures: list[Path], json: bool) -> None:
    """Print what a demo found: how long programs took, and where that time went."""
    if json:
        emit(summary)
        return
    out, policies = console(), summary["policies"]
    before, after = policies.values()
    table = Table(title=f"{summary['programs']} programs, median of the rounds")
    table.add_column("")
    for policy in policies:
        table.add_column(policy, justify="right")
    table.add_column("")

    def row(words: str, first: float, second: float, form: str, why: str = "") -> None:
        table.add_row(words, form.format(first), form.format(second), why)

    row("programs solved", before["solved"], after["solved"], "{:d}")
    for key, words in (("jct_mean_s", "time of a program, mean"), ("jct_p95_s", "  p95")):
        ratio = before[key] / max(after[key], 1e-9)
        row(words, before[key], after[key], "{:.2f} s", f"[bold]{ratio:.1f}x[/bold]")
    table.add_section()
    for key, words, why in _SPENT:
        row(f"  {words}", before["spent_s"][key], after["spent_s"][key], "{:.2f} s", why)
    table.add_section()
    row("prompt tokens", before["prompt_tokens"], after["prompt_tokens"], "{:,d}")
    row(
        "  computed a second time", before["recomputed_tokens"], after["recomputed_tokens"], "{:,d}"
    )
    out.print(table)
    equal = all(p["answers_equal"] for p in policies.values())
    out.print("answers: " + ("identical under both policies" if equal else "[red]they differ"))
    for path in pictures:
        out.print(f"picture: {path.resolve()}")


__all__ = ["console", "demo", "demo_progress", "emit"]
