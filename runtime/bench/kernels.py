"""`drawloom bench kernels`: every kernel as it is compiled, and, on a GPU, how fast it is."""

from typing import Any

from rich.table import Table

from drawloom.runtime.console import output

CHIPS = (80, 90)


def main(json: bool) -> int:
    """Print registers, shared memory and spills of every kernel; return 1 if one does not fit."""
    from drawloom.engine.kernel_tools.launch_configs import compiled

    rows: list[dict[str, Any]] = []
    for made in compiled(CHIPS):
        rows.append(
            {
                "kernel": made.name,
                "form": made.form,
                "chip": f"sm_{made.chip}",
                "warps": made.warps,
                "registers": made.registers,
                "shared": made.shared,
                "spilled": made.spilled,
                "wgmma": made.wgmma,
                "fits": made.fits,
            }
        )
        if not json:
            output.note(f"{made.name} for sm_{made.chip} ({made.form})")
    if json:
        output.emit({"kernels": rows})
    else:
        output.console().print(_table(rows))
    return 0 if all(row["fits"] for row in rows) else 1


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{len(rows)} kernels, compiled without a GPU")
    for name in ("kernel", "first met in", "chip"):
        table.add_column(name, no_wrap=True)
    for name in ("warps", "registers", "shared, bytes", "spilled, bytes"):
        table.add_column(name, justify="right")
    table.add_column("wgmma")
    for row in rows:
        table.add_row(
            row["kernel"],
            row["form"],
            row["chip"],
            str(row["warps"]),
            str(row["registers"]),
            f"{row['shared']:,}",
            str(row["spilled"]),
            "yes" if row["wgmma"] else "",
            style="" if row["fits"] else "red",
        )
    return table


__all__ = ["main"]
