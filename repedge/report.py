"""Tables, progress and next-step hints for people. Everything on stderr but the tables."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from repedge.api import CompileReport
    from repedge.bundle import Verification
    from repedge.dryrun import Preview
    from repedge.evaluation import Accuracy
    from repedge.health import Health
    from repedge.inspection import Inspection, Size
    from repedge.models.registry import ModelSpec
    from repedge.targets.base import Target

SHOWN = 10  # candidates left unfused that `inspect` prints
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(line: str, where: Console = out) -> None:
    """Print a line with markup, left whole: the terminal wraps it, so that paths in it can be copied."""
    where.print(line, soft_wrap=True)


def columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), where: Console = out
) -> None:
    """Aligned columns of cells with markup, never cut short, whatever the width of the terminal.

    Args:
        right: Headers of the columns that are aligned at the right.
    """
    cells = [[Text(name, style="bold") for name in header], *([Text.from_markup(c) for c in r] for r in rows)]
    widths = [max(cell_len(row[i].plain) for row in cells) for i in range(len(header))]
    at_right = {i for i, name in enumerate(header) if name in right}
    for row in cells:
        line = Text()
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            pad = " " * (width - cell_len(cell.plain))
            line.append_text(Text(pad) + cell if i in at_right else cell + Text(pad)).append("  ")
        line.rstrip()
        where.print(line, soft_wrap=True)


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
    say(_titled(result.name, result.found))
    rows = []
    for b in result.bundles:
        v = b.verify
        verdict = "[green]verified[/]" if v.passed else "[red]REJECTED[/]"
        numbers = (
            f"{b.size_bytes / 1e6:.2f}",
            f"{v.sqnr_db:.1f}",
            f"{v.max_abs_err:.1e}",
            _share(v.agree_top1),
        )
        rows.append([b.target, b.precision, *numbers, f"{sum(b.seconds.values()):.1f}", verdict])
    figures = "MB", "SQNR dB", "max error", "top-1 kept", "s"
    columns(("target", "precision", *figures, ""), rows, right=figures)
    for b in result.bundles:
        say(f"  {escape(str(b.path))}")
    for b in result.bundles:
        for failure in b.verify.failures:
            say(f"[red]{b.target} {b.precision}[/]: {escape(failure)}", err)
    good = [b for b in result.bundles if b.verify.passed]
    if good:
        path = escape(shlex.quote(str(good[0].path)))
        say(f"[dim]next:  repedge verify {path}[/]")
        say(f"[dim]       repedge eval {path} YOUR_PHOTOS[/]")
    if len(good) < len(result.bundles):
        say("rejected bundles are kept aside as *.rejected for a look; they are not to be shipped", err)


def planned(p: Preview) -> None:
    """What a dry run found: bundles, their schemes, the photos, the steps."""
    say(_titled(p.model, p.found))
    height, width = p.preprocess.size
    say(f"  input {height}x{width} {p.preprocess.color}, artifacts take {p.input_kind}")
    rows = []
    for b in p.builds:
        rows.append([b.target, b.precision, _scheme(b.scheme), escape(b.executor), escape(str(b.path))])
    columns(("target", "precision", "integers", "verified in", "bundle"), rows)
    c = p.calibration
    if p.recipe is not None and c is not None:
        of = "" if c["available"] is None else f" of {c['available']}"
        where = f"{c['kind']} {c['source']} ({c['found']})"
        say(f"calibration: {c['count']}{of} images, seed {c['seed']}, from {escape(where)}")
        say(f"recipe {escape(str(p.recipe))}")
    if p.keep_float:
        say(f"kept in float: {escape(', '.join(p.keep_float))}")
    if p.budget is not None:
        unit = "points" if p.budget["measure"] == "max_drop" else "nats"
        on = escape(p.budget["data"] or "calibration photos left over")
        say(f"budget: {p.budget['limit']:g} {unit} on at most {p.budget['count']} of {on}")
    say("[dim]dry run: nothing was written[/]")


def _scheme(scheme: dict[str, Any] | None) -> str:
    if scheme is None:
        return "[dim]no calibration[/]"
    zero = "symmetric" if scheme["symmetric"] else "asymmetric"
    weights = f"weights int{scheme['weight_bits']}" + (" per channel" if scheme["per_channel"] else "")
    return f"activations {scheme['activations']} {zero}, {weights}"


def verified(path: Path, v: Verification) -> None:
    """One bundle's comparison with its reference."""
    state = "[green]is the model it came from[/]" if v.passed else "[red]differs from its reference[/]"
    say(f"{escape(str(path))} {state}")
    say(
        f"  {v.n} images ({escape(v.images)}) in {v.executor}: SQNR {v.sqnr_db:.1f} dB, "
        f"max error {v.max_abs_err:.1e}, top-1 kept {_share(v.agree_top1)}"
    )
    for failure in v.failures:
        say(f"  [red]{escape(failure)}[/]", err)


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
    say(f"[bold]{escape(what)}[/]")
    out.print(table)


def inspected(i: Inspection) -> None:
    """What was found; for models, the before/after table of fusing."""
    say(_titled(i.path, i.found))
    if i.before and i.after:
        _before_after(i.before, i.after)
        left = i.details.get("unfused", [])
        merges = i.details.get("merges", [])
        out.print(f"{len(merges)} merges, {len(left)} candidates left as they are")
        for item in left[:SHOWN]:
            say(f"  [dim]{escape(' + '.join(item['nodes'][:3]))}: {escape(item['reason'])}[/]")
        if len(left) > SHOWN:
            say(f"  [dim]and {len(left) - SHOWN} more; --json lists them all[/]")
    elif i.kind == "checkpoint":
        out.print(f"{i.details['tensors']} tensors, {i.details['params']:,} values")
    else:
        for name, text in _bundle_facts(i.details):
            say(f"  {name:<10}{escape(text)}")


def _bundle_facts(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What an app developer asks of a manifest, as (name, text)."""
    origin, checked = manifest["origin"], manifest["verification"]
    for side in ("inputs", "outputs"):
        for t in manifest[side]:
            yield side[:-1], f"{t['name']}: {t['dtype']} {list(t['shape'])} {t['layout']}"
    if manifest["labels"]:
        names = manifest["labels"]
        yield "labels", f"{len(names)}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    yield "requires", ", ".join(f"{name} {version}" for name, version in manifest["requires"].items())
    yield "from", origin["description"] + (f"; {origin['license']}" if origin["license"] else "")
    if checked:
        verdict = "verified" if checked["passed"] else "REJECTED"
        yield verdict, f"SQNR {checked['sqnr_db']:.1f} dB on {checked['n']} images ({checked['images']})"
    for note in manifest["notes"]:
        yield "note", note


def _before_after(before: Size, after: Size) -> None:
    rows = []
    for key in ("convolutions", "normalizations", "branches", "nodes", "params", "macs"):
        b, a = getattr(before, key), getattr(after, key)
        rows.append([key, f"{b:,}", f"{a:,}", f"{(a - b) / b:+.1%}" if b else ""])
    columns(("", "before", "fused", "change"), rows, right=("before", "fused", "change"))


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
    cells = []
    for row in rows:
        size = "x".join(map(str, row["input_size"]))
        cells.append([row["name"], str(row["classes"]), size, row["weights"] or "[dim]none published[/]"])
    columns(("name", "classes", "input", "weights"), cells, right=("classes", "input"))
    say("[dim]also: file.onnx, package.module:factory, timm:NAME[/]")


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
    say("  ".join(f"{k} {v}" for k, v in health.packages.items()))
    for name, present in health.extras.items():
        say(f"[dim]{name}: {'installed' if present else 'not installed'}[/]")


def _yes(flag: bool) -> str:
    return "[green]yes[/]" if flag else "[red]no[/]"


def _titled(name: str, found: str) -> str:
    """The name, which the sentence may begin with, in bold, and the sentence."""
    rest = found.removeprefix(f"{name} ")
    return f"[bold]{escape(name)}[/]{': ' if rest == found else ' '}{escape(rest)}"


def _share(value: float | None, absent: str = "-") -> str:
    return absent if value is None else f"{value:.2%}"
