"""What repedge verify and repedge eval show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from repedge import tasks
from repedge.cli.tables.console import err, out, say, shown, warn

if TYPE_CHECKING:
    from repedge.bundle.manifest import Verification
    from repedge.judge.evaluation import Accuracy


def verified(path: Path, v: Verification) -> None:
    """One bundle's comparison with its reference."""
    state = "[green]is the model it came from[/]" if v.passed else "[red]differs from its reference[/]"
    say(f"{escape(str(path))} {state}")
    known = shown(v.figures)
    say(
        f"  {v.n} images ({escape(v.images)}) in {v.executor}: SQNR {v.sqnr_db:.1f} dB, "
        + ", ".join([f"max error {v.max_abs_err:.1e}", *(f"{f.title} {f.text(x, v.n)}" for f, x in known)])
    )
    for failure in v.failures:
        say(f"  [red]{escape(failure)}[/]", err)
    for remark in v.remarks:
        say(f"  [yellow]{escape(remark)}[/]", err)


def evaluated(what: str, a: Accuracy) -> None:
    """Accuracy of one artifact or model."""
    warn(a.warnings)
    table = Table(box=None, pad_edge=False, show_header=False)
    skipped = f" ({a.skipped} could not be decoded)" if a.skipped else ""
    table.add_row("images", f"{a.n}{skipped}")
    for key, value in a.metrics.items():
        figure = tasks.figure(key)
        table.add_row(figure.title, figure.text(value, a.labelled))
    for key, value in a.exact.items():
        figure = tasks.figure(key.removesuffix("_float"))
        if value is not None:
            table.add_row(f"{figure.title} of float", figure.text(value))
    if a.lost is not None:
        points = (100 * v for v in (a.lost.value, a.lost.low, a.lost.high))
        table.add_row("lost", "{:.2f} points ({:.2f} to {:.2f})".format(*points))
    if a.sqnr_db is not None:
        table.add_row("SQNR", f"{a.sqnr_db:.1f} dB")
    for key, value in a.figures.items():
        figure = tasks.figure(key)
        if value is not None or figure.unit == "share":
            table.add_row(figure.phrase or figure.title, figure.text(value, a.n))
    say(f"[bold]{escape(what)}[/]")
    out.print(table)
