"""What repedge compile shows: bundles, or the plan of a dry run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape

from repedge import tasks
from repedge.cli.commands import command
from repedge.cli.tables.console import cell, columns, err, say, titled
from repedge.models.provenance import described

if TYPE_CHECKING:
    from repedge.api import CompileReport
    from repedge.compiler.preview import Preview


def compiled(result: CompileReport) -> None:
    """Bundles with their size, how they compare with the model, and how long they took."""
    say(titled(result.name, result.found))
    say(f"[dim]preprocessing: {escape(described(result.preprocess, result.preprocess_from))}[/]")
    if result.task is not None:
        say(f"[dim]outputs: {escape(result.task.describe())} (--task {result.task.name})[/]")
    rows = []
    named = [tasks.figure(key) for key in (result.bundles[0].verify.figures if result.bundles else ())][:1]
    if result.bundles:
        v = result.bundles[0].verify
        say(f"[dim]judged on {v.n} images: {escape(v.images)}[/]")
    truth = [key for key in (result.bundles[0].verify.truth if result.bundles else ()) if key != "labelled"]
    for b in result.bundles:
        v = b.verify
        labelled = int(v.truth.get("labelled", 0))
        verdict = "[green]verified[/]" if v.passed else "[red]REJECTED[/]"
        numbers = (
            f"{b.size_bytes / 1e6:.2f}",
            f"{v.sqnr_db:.1f}",
            f"{v.max_abs_err:.1e}",
            *(cell(f, v.figures[f.key], v.n) for f in named),
            *(cell(tasks.figure(k.removeprefix("float_")), v.truth.get(k), labelled) for k in truth),
        )
        rows.append([b.target, b.precision, *numbers, f"{sum(b.seconds.values()):.1f}", verdict])
    figures = ["MB", "SQNR dB", "max error", *(f.title for f in named), *map(_truth_title, truth), "s"]
    columns(("target", "precision", *figures, ""), rows, right=figures)
    for b in result.bundles:
        say(f"  {escape(str(b.path))}")
    _trouble(result)
    good = [b for b in result.bundles if b.verify.passed]
    if good:
        path = str(good[0].path)
        say(f"[dim]next:  {escape(command('verify', keep=('images', 'count'), bundle=path))}[/]")
        say(f"[dim]       {escape(command('eval', keep=(), what=[path, 'YOUR_PHOTOS']))}[/]")
    if len(good) < len(result.bundles):
        say("rejected bundles are kept aside as *.rejected for a look; they are not to be shipped", err)


def _trouble(result: CompileReport) -> None:
    """What was not built, what is wrong with bundles, and what to know of them."""
    for r in result.refused:
        say(f"[red]{r.target} {r.precision}: not built[/]: {escape(r.why)}", err)
    for b in result.bundles:
        for failure in b.verify.failures:
            say(f"[red]{b.target} {b.precision}[/]: {escape(failure)}", err)
        for remark in b.verify.remarks:
            say(f"[yellow]{b.target} {b.precision}[/]: {escape(remark)}", err)


def _truth_title(key: str) -> str:
    title = tasks.figure(key.removeprefix("float_")).title
    return f"float {title}" if key.startswith("float_") else title


def planned(p: Preview) -> None:
    """What a dry run found: bundles, their schemes, the photos, the steps."""
    say(titled(p.model, p.found))
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
    for r in p.refused:
        say(f"[red]{r.target} {r.precision}[/] would not be built: {escape(r.why)}", err)
    say("[dim]dry run: nothing was written[/]")


def _scheme(scheme: dict[str, Any] | None) -> str:
    if scheme is None:
        return "[dim]no calibration[/]"
    zero = "symmetric" if scheme["symmetric"] else "asymmetric"
    weights = f"weights int{scheme['weight_bits']}" + (" per channel" if scheme["per_channel"] else "")
    return f"activations {scheme['activations']} {zero}, {weights}"
