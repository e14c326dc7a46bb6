"""What repedge verify and repedge eval show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from repedge.cli.tables.console import err, out, say, share_of

if TYPE_CHECKING:
    from repedge.bundle.manifest import Verification
    from repedge.judge.evaluation import Accuracy


def verified(path: Path, v: Verification) -> None:
    """One bundle's comparison with its reference."""
    state = "[green]is the model it came from[/]" if v.passed else "[red]differs from its reference[/]"
    say(f"{escape(str(path))} {state}")
    say(
        f"  {v.n} images ({escape(v.images)}) in {v.executor}: SQNR {v.sqnr_db:.1f} dB, "
        f"max error {v.max_abs_err:.1e}, top-1 kept {share_of(v.agree_top1)}"
    )
    for failure in v.failures:
        say(f"  [red]{escape(failure)}[/]", err)


def evaluated(what: str, a: Accuracy) -> None:
    """Accuracy of one artifact or model."""
    table = Table(box=None, pad_edge=False, show_header=False)
    skipped = f" ({a.skipped} could not be decoded)" if a.skipped else ""
    table.add_row("images", f"{a.n}{skipped}")
    table.add_row("top-1", share_of(a.top1, "no labels"))
    table.add_row("top-5", share_of(a.top5, "no labels"))
    table.add_row("agreement with float", share_of(a.agree_top1, "no reference"))
    if a.sqnr_db is not None:
        table.add_row("SQNR", f"{a.sqnr_db:.1f} dB")
    if a.kl is not None:
        table.add_row("KL divergence", f"{a.kl:.2e} nats")
    say(f"[bold]{escape(what)}[/]")
    out.print(table)
