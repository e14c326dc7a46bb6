"""The page of a diagnosis: findings, the heat map over depth, a table of all layers. No script."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from repedge import tasks
from repedge.diagnosis.findings import details
from repedge.diagnosis.heatmap import STEPS, colours, describe, heatmap, step
from repedge.diagnosis.layers import LayerDiagnosis
from repedge.diagnosis.metrics import METRICS, Metric, times, treatment_words
from repedge.diagnosis.report import Report
from repedge.html import style
from repedge.version import __version__


def page(report: Report) -> str:
    """The page's HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    d = report.diagnosis
    shown = [m for m in METRICS if any(m.value(la) is not None for la in d.layers)]
    return environment.get_template("page.html.jinja").render(
        style=Markup(style()),
        colours=Markup(colours()),
        title=f"int8 diagnosis of {report.name}",
        report=report,
        version=__version__,
        d=d,
        findings=details(d),
        wholes=[("stock calibration", d.stock), (f"recipe {report.recipe}", d.planned)] if d.stock else [],
        figures=[tasks.figure(key) for key in d.stock.figures] if d.stock else [],
        heatmap=Markup(heatmap(d)),
        steps=range(STEPS),
        metrics=shown,
        rows=[_row(la, shown) for la in d.layers],
    )


def _row(la: LayerDiagnosis, shown: list[Metric]) -> dict[str, Any]:
    from markupsafe import Markup

    return {
        "index": la.index,
        "name": la.name,
        "node": la.node,
        "what": describe(la),
        "kernel": Markup(_kernel(la)),
        "cells": [_cell(m, la) for m in shown],
        "branches": "; ".join(
            f"{b.kind}: {times(b.growth)}, at most {times(b.growth_worst)}" for b in la.branches
        ),
        "treatment": treatment_words(la),
        "float": bool(la.treatment and la.treatment.float_why),
    }


def _cell(metric: Metric, la: LayerDiagnosis) -> tuple[str, int | None]:
    """A value in words and the index of its colour."""
    value = metric.value(la)
    return ("", None) if value is None else (metric.text(value), step(metric, value))


def _kernel(la: LayerDiagnosis, size: int = 6) -> str:
    """A small picture of the kernel: the root mean square of each tap."""
    taps = la.weights.taps
    if taps is None:
        return ""
    height, width = len(taps) * size, len(taps[0]) * size
    cells = "".join(
        f"<rect class='tap' x='{x * size}' y='{y * size}' width='{size - 1}' height='{size - 1}' "
        f"fill-opacity='{0.06 + 0.94 * tap:.2f}'/>"
        for y, row in enumerate(taps)
        for x, tap in enumerate(row)
    )
    tip = escape("; ".join(" ".join(f"{tap:.2f}" for tap in row) for row in taps))
    return (
        f"<svg class='kernel' viewBox='0 0 {width} {height}' style='width:{width}px;height:{height}px'>"
        f"<title>{tip}</title>{cells}</svg>"
    )
