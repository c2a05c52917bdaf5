"""Figures beside those of others, and the bars that they are to reach."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from drawloom.runtime.console import output


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one figure beside a rival's.

    Args:
        what: the name of the row.
        unit: unit of both figures.
        ours: our figure.
        other: the rival's.
        against: the rival's name.
        want: the bar for the ratio: at least, or at most if negative; 0: none.
    """

    what: str
    unit: str
    ours: float
    other: float
    against: str
    want: float = 0.0

    @property
    def ratio(self) -> float:
        """Return our figure over the rival's; 0 where that is 0."""
        return self.ours / self.other if self.other else 0.0

    @property
    def met(self) -> bool:
        """Return whether the ratio meets its bar."""
        return self.ratio >= self.want if self.want >= 0 else self.ratio <= -self.want


def note(row: Row) -> None:
    """Print one row to stderr as progress."""
    output.note(f"{row.what}: {row.ours:,.4g} {row.unit}, {row.ratio:.2f} x {row.against}")


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as JSON values, with ratio and verdict."""
    return [asdict(r) | {"ratio": r.ratio, "met": r.met} for r in rows]


def report(
    rows: Sequence[Row], about: dict[str, Any], json: bool, more: dict[str, Any] | None = None
) -> None:
    """Print all rows, as JSON or as a table.

    Args:
        rows: what was measured.
        about: the machine and versions.
        json: print JSON.
        more: further fields of the JSON.
    """
    if json:
        output.emit(about | (more or {}) | {"rows": plain(rows)})
        return
    table = Table("", "unit", "drawloom", "beside it", "", "ratio", "bar", title=str(about))
    table.columns[0].no_wrap = table.columns[4].no_wrap = True
    for row in rows:
        bar = "" if not row.want else f"{'≥' if row.want > 0 else '≤'} {abs(row.want):g}"
        mark = "" if not row.want else " ✓" if row.met else " ✗"
        table.add_row(
            row.what,
            row.unit,
            f"{row.ours:,.4g}",
            f"{row.other:,.4g}",
            row.against,
            f"{row.ratio:.2f}",
            bar + mark,
        )
    output.console().print(table)


__all__ = ["Row", "note", "plain", "report"]
