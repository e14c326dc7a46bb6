"""The table of ``repedge diagnose``."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from repedge import targets
from repedge.cli.commands import command
from repedge.cli.tables.console import columns, err, say
from repedge.diagnosis.layers import LayerDiagnosis
from repedge.diagnosis.metrics import BY_KEY, Metric, treatment_words
from repedge.diagnosis.report import Report

COLUMNS = (
    ("growth", "growth"),
    ("centre", "centre/ring"),
    ("spread", "w spread"),
    ("sqnr", "w SQNR"),
    ("outlier", "outlier"),
    ("channels", "a spread"),
    ("dead", "dead"),
    ("stock", "cost stock"),
    ("cost", "cost recipe"),
)
"""Metric -> its heading; those that no layer has are left out."""

COLOURS = ((0.85, "red"), (0.6, "yellow"))
"""Least heat -> colour of a cell."""


def diagnosed(r: Report, top: int, by_depth: bool, html: Path | None) -> None:
    """Findings, the layers that matter most (or all in depth order), and what to do next."""
    say(f"[bold]{escape(r.name)}[/] for {r.target} {r.precision}: {escape(r.found)}")
    for warning in r.warnings:
        say(f"[yellow]{escape(warning)}[/]", err)
    for sentence in r.findings:
        say(f"  - {escape(sentence)}")
    ranked = ranking(r.diagnosis.layers)
    rows = ranked[:top] if top else ranked
    if by_depth:
        rows = sorted(rows, key=lambda la: la.index)
    _layers(rows, calibrated=bool(r.diagnosis.images))
    left = len(ranked) - len(rows)
    measure = "cost" if r.diagnosis.images else "rounding noise"
    if left:
        say(f"[dim]{left} layers of less {measure} are not shown; --top 0 shows all, --json everything[/]")
    if html is not None:
        say(f"  {escape(str(html))}")
    line, why = _next(r, html)
    say(f"[dim]next:  {escape(line)}   ({why})[/]")


def _next(r: Report, html: Path | None) -> tuple[str, str]:
    """A command to go on with, and what it gives."""
    if not r.diagnosis.images:
        return command("diagnose", calib="PHOTOS"), "activations, costs and what will be done"
    if html is None:
        return command("diagnose", html="diagnosis.html"), "the heat map over depth"
    offered = r.precision in targets.get(r.target).precisions
    precision = {"precision": [r.precision]} if offered else {}
    return command("compile", drop=("precision",), target=[r.target], **precision), "the artifact, verified"


def ranking(layers: tuple[LayerDiagnosis, ...]) -> list[LayerDiagnosis]:
    """Worst first: by the cost that is left with the recipe, else the stock cost, else rounding noise."""

    def badness(la: LayerDiagnosis) -> tuple[float, float]:
        costs = [c for c in (la.cost, la.cost_stock) if c is not None]
        return (costs[0] if costs else -1.0, -la.weights.sqnr_db)

    return sorted(layers, key=badness, reverse=True)


def _layers(rows: list[LayerDiagnosis], calibrated: bool) -> None:
    shown = [(BY_KEY[key], head) for key, head in COLUMNS]
    shown = [(m, head) for m, head in shown if any(m.value(la) is not None for la in rows)]
    heads = [head for _, head in shown]
    table = []
    for la in rows:
        cells = [_cell(m, m.value(la)) for m, _ in shown]
        last = [escape(treatment_words(la))] if calibrated else []
        table.append([str(la.index + 1), escape(la.name), la.kind, *cells, *last])
    header = ["#", "layer", "kind", *heads, *(["what will be done"] if calibrated else [])]
    columns(header, table, right=("#", *heads))


def _cell(metric: Metric, value: float | None) -> str:
    if value is None:
        return "[dim]-[/]"
    text = metric.text(value)
    heat = metric.heat(value)
    for least, colour in COLOURS:
        if heat >= least:
            return f"[{colour}]{text}[/]"
    return text
