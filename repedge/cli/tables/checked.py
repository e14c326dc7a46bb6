"""What repedge verify and repedge eval show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

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


def evaluated(what: str, a: Accuracy, html: Path | None = None) -> None:
    """Accuracy of one artifact or model."""
    from repedge.judge.gallery import figures

    warn(a.warnings)
    table = Table(box=None, pad_edge=False, show_header=False)
    skipped = f" ({a.skipped} could not be decoded)" if a.skipped else ""
    table.add_row("images", f"{a.n}{skipped}")
    for name, value in figures(a):
        table.add_row(name, value)
    say(f"[bold]{escape(what)}[/]")
    out.print(table)
    if html is not None:
        say(f"the {len(a.shown)} photos that differ most are in {escape(str(html))}")
