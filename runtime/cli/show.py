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
            now = f"{started - ended} running, {total - started} held"
            bars.update(known[key], completed=ended, now=now if ended < total else "done")

        yield report


def _lines(stream: Any) -> Progress:
    def report(policy: str, index: int, total: int, started: int, ended: int) -> None:
        if ended == total:
            print(f"round {index + 1}  {policy}: {total} programs done", file=stream, flush=True)

    return report


_ROWS = (
    ("solved", "programs solved", "{:d}"),
    ("jct_mean_s", "job completion, mean", "{:.2f} s"),
    ("jct_p95_s", "job completion, p95", "{:.2f} s"),
    ("ttft_p99_s", "first token of later steps, p99", "{:.2f} s"),
    ("prompt_tokens", "prompt tokens", "{:,d}"),
    ("prefix_hit_tokens", "  found in the KV cache", "{:,d}"),
    ("recomputed_tokens", "  computed a second time", "{:,d}"),
    ("env_claims", "environments claimed", "{:d}"),
    ("env_warm_claims", "  ready when asked for", "{:d}"),
    ("env_wait_hidden", "environment wait hidden", "{:.0%}"),
)


def demo(summary: dict[str, Any], pictures: list[Path], json: bool) -> None:
    if json:
        emit(summary)
        return
    out, policies = console(), summary["policies"]
    table = Table(title=f"{summary['programs']} programs, median of the rounds")
    table.add_column("")
    for policy in policies:
        table.add_column(policy, justify="right")
    for key, words, form in _ROWS:
        values = [p[key] for p in policies.values()]
        table.add_row(words, *("–" if v is None else form.format(v) for v in values))
    out.print(table)
    equal = all(p["answers_equal"] for p in policies.values())
    out.print("answers: " + ("identical under both policies" if equal else "[red]they differ"))
    for path in pictures:
        out.print(f"picture: {path.resolve()}")


__all__ = ["console", "demo", "demo_progress", "emit"]
