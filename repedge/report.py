"""Tables, progress and next-step hints for people. Everything on stderr but the tables."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from repedge.api import CompileReport
    from repedge.bundle import Verification
    from repedge.evaluation import Accuracy
    from repedge.health import Health
    from repedge.inspection import Inspection, Size
    from repedge.models.registry import ModelSpec
    from repedge.targets.base import Target

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@contextlib.contextmanager
def stages(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A spinner that shows the current stage; plain lines where stderr is no terminal."""
    if quiet or not err.is_terminal:
        yield lambda stage: None if quiet else print(f"  {stage}", file=sys.stderr, flush=True)
        return
    with err.status("starting") as status:
        yield lambda stage: status.update(stage)


@contextlib.contextmanager
def progress(title: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar over images; under ``--json`` it goes to stderr as well, if that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not err.is_terminal:
        yield lambda done, total: None
        return
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def compiled(result: CompileReport) -> None:
    """Bundles with their size, how they compare with the model, and how long they took."""
    out.print(f"[bold]{result.name}[/]: {result.found}")
    table = Table("bundle", "MB", "SQNR dB", "max error", "top-1 kept", "", "s", box=None, pad_edge=False)
    for b in result.bundles:
        v = b.verify
        verdict = "[green]verified[/]" if v.passed else "[red]REJECTED[/]"
        table.add_row(
            str(b.path), f"{b.size_bytes / 1e6:.2f}", f"{v.sqnr_db:.1f}", f"{v.max_abs_err:.1e}",
            _share(v.agree_top1), verdict, f"{sum(b.seconds.values()):.1f}",
        )  # fmt: skip
    out.print(table)
    for b in result.bundles:
        for failure in b.verify.failures:
            err.print(f"[red]{b.target} {b.precision}[/]: {failure}")
    good = [b for b in result.bundles if b.verify.passed]
    if good:
        out.print(
            f"[dim]next: repedge verify {good[0].path}   |   repedge eval {good[0].path} YOUR_PHOTOS[/]"
        )
    if len(good) < len(result.bundles):
        err.print("rejected bundles are kept aside as *.rejected for a look; they are not to be shipped")


def verified(path: Path, v: Verification) -> None:
    """One bundle's comparison with its reference."""
    state = "[green]is the model it came from[/]" if v.passed else "[red]differs from its reference[/]"
    out.print(f"{path} {state}")
    out.print(
        f"  {v.n} images ({v.images}) in {v.executor}: SQNR {v.sqnr_db:.1f} dB, "
        f"max error {v.max_abs_err:.1e}, top-1 kept {_share(v.agree_top1)}"
    )
    for failure in v.failures:
        err.print(f"  [red]{failure}[/]")


def evaluated(what: str, a: Accuracy) -> None:
    """Accuracy of one artifact or model."""
    table = Table(box=None, pad_edge=False, show_header=False)
    skipped = f" ({a.skipped} could not be decoded)" if a.skipped else ""
    table.add_row("images", f"{a.n}{skipped}")
    table.add_row("top-1", _share(a.top1, "no labels"))
    table.add_row("top-5", _share(a.top5, "no labels"))
    table.add_row("agreement with float", _share(a.agree_top1, "no reference"))
    if a.sqnr_db is not None:
        table.add_row("SQNR", f"{a.sqnr_db:.1f} dB")
    if a.kl is not None:
        table.add_row("KL divergence", f"{a.kl:.2e} nats")
    out.print(f"[bold]{what}[/]")
    out.print(table)


def inspected(i: Inspection) -> None:
    """What was found; for models, the before/after table of fusing."""
    out.print(f"[bold]{i.path}[/] ({i.kind}): {i.found}")
    if i.before and i.after:
        _before_after(i.before, i.after)
        left = i.details.get("unfused", [])
        merges = i.details.get("merges", [])
        out.print(f"{len(merges)} merges, {len(left)} candidates left as they are")
        for item in left[:10]:
            out.print(f"  [dim]{' + '.join(item['nodes'][:3])}: {item['reason']}[/]")
    elif i.kind == "checkpoint":
        out.print(f"{i.details['tensors']} tensors, {i.details['params']:,} values")
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for key in ("input_kind", "requires", "origin", "notes"):
            table.add_row(key, str(i.details.get(key)))
        for side in ("inputs", "outputs"):
            for t in i.details[side]:
                table.add_row(side[:-1], f"{t['name']} {t['dtype']} {t['shape']} {t['layout']}")
        out.print(table)


def _before_after(before: Size, after: Size) -> None:
    table = Table("", "before", "fused", "change", box=None, pad_edge=False)
    for key in ("convolutions", "normalizations", "branches", "nodes", "params", "macs"):
        b, a = getattr(before, key), getattr(after, key)
        table.add_row(key, f"{b:,}", f"{a:,}", f"{(a - b) / b:+.1%}" if b else "")
    out.print(table)


def model_row(spec: ModelSpec) -> dict[str, Any]:
    """One row of ``repedge models``."""
    return {
        "name": spec.name,
        "family": spec.family,
        "classes": spec.num_classes,
        "input_size": list(spec.input_size),
        "weights": "bundled" if spec.bundled else f"hf://{spec.hub}" if spec.hub else spec.release,
    }


def models(rows: list[dict[str, Any]]) -> None:
    """The model table."""
    table = Table("name", "classes", "input", "weights", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], str(row["classes"]), "x".join(map(str, row["input_size"])), row["weights"])
    out.print(table)
    out.print("[dim]also: file.onnx, package.module:factory, timm:NAME[/]")


def target_row(target: Target) -> dict[str, Any]:
    """One row of ``repedge targets``."""
    return {
        "name": target.name,
        "title": target.title,
        "precisions": list(target.precisions),
        "executor": target.executor,
    }


def targets(rows: list[dict[str, Any]]) -> None:
    """The target table."""
    table = Table("target", "artifact", "precisions (default first)", "verified in", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], row["title"], ", ".join(row["precisions"]), row["executor"])
    out.print(table)


def doctor(health: Health) -> None:
    """What is installed and what works."""
    out.print(f"[bold]{health.host}[/]")
    table = Table("target", "compiles", "runs here", "in", "", box=None, pad_edge=False)
    for t in health.targets:
        table.add_row(t.name, _yes(t.compiles), _yes(t.runs), t.executor, t.note)
    out.print(table)
    out.print("  ".join(f"{k} {v}" for k, v in health.packages.items()))
    for name, present in health.extras.items():
        out.print(f"[dim]{name}: {'installed' if present else 'not installed'}[/]")


def _yes(flag: bool) -> str:
    return "[green]yes[/]" if flag else "[red]no[/]"


def _share(value: float | None, absent: str = "-") -> str:
    return absent if value is None else f"{value:.2%}"
