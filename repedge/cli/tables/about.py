"""Tables of models, targets, this machine, and what was found in a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from repedge.cli.tables.console import columns, out, say, titled, warn

if TYPE_CHECKING:
    from repedge.diagnosis.machine import Health
    from repedge.diagnosis.model import Inspection, Size
    from repedge.models.registry import ModelSpec
    from repedge.targets.base import Target


SHOWN = 10  # candidates left unfused that `inspect` prints


def inspected(i: Inspection) -> None:
    """What was found; for models, the before/after table of fusing."""
    say(titled(i.path, i.found))
    warn(i.warnings)
    if i.task:
        say(f"[dim]outputs: {escape(i.outputs)} (--task {i.task})[/]")
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
