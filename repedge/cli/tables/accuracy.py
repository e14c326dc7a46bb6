"""Tables of accuracy: several bundles side by side, and the search for an accuracy budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from repedge import tasks
from repedge.cli.tables.console import cell, columns, out, say, warn
from repedge.tasks.base import FEW, Figure

if TYPE_CHECKING:
    from rich.console import Console

    from repedge.compiler.budget import SearchResult
    from repedge.compiler.fastest import Choice
    from repedge.judge.side_by_side import Pair, Parity


def parity(result: Parity) -> None:
    """Each member against its float reference, then every two members against each other."""
    warn(result.warnings)
    skipped = f", {result.skipped} could not be decoded" if result.skipped else ""
    say(f"[bold]{result.n} photos[/] ({escape(result.images)}{skipped})")
    rows, task = [], result.task
    agreed = [tasks.figure(key) for key in result.pairs[0].figures if key.startswith(tasks.AGREE)]
    nearness = [*task.figures, *(f for f in agreed if f not in task.figures)]
    for i, m in enumerate(result.members):
        pair = None if m.reference is None else result.pair(m.reference, i)
        numbers = [cell(f, m.metrics[f.key], m.labelled) for f in task.metrics]
        if result.labelled:
            numbers.append("" if m.lost is None else f"{100 * m.lost.value:.2f}")
        numbers += [f"{pair.sqnr_db:.1f}" if pair else "", *(_figure(f, pair) for f in nearness)]
        rows.append([f"[bold]{i + 1}[/]", escape(m.name), *numbers])
    lost = ["lost, points"] * result.labelled
    figures = [*(f.title for f in task.metrics), *lost, "SQNR dB", *(f.title for f in nearness)]
    columns(("", "", *figures), rows, right=figures)
    say("")
    say("[dim]agreement and SQNR (dB) of every two[/]")
    header = ["", "", *(str(i + 1) for i in range(1, len(result.members)))]
    matrix = []
    for a, m in enumerate(result.members[:-1]):
        cells = [
            "" if b <= a else _cell(result.pair(a, b), task.figures) for b in range(1, len(result.members))
        ]
        matrix.append([f"[bold]{a + 1}[/]", escape(m.name), *cells])
    columns(header, matrix, right=header[2:])


def _figure(figure: Figure, pair: Pair | None) -> str:
    if pair is None:
        return ""
    return cell(figure, pair.figures[figure.key], pair.n).removesuffix(f" {figure.unit}")


def _cell(pair: Pair, figures: Sequence[Figure]) -> str:
    few = [f for f in figures[:1] if pair.figures[f.key] is not None]
    shares = [f.text(pair.figures[f.key], pair.n if pair.n < FEW else 0) for f in few]
    return "  ".join([*shares, f"{pair.sqnr_db:5.1f}"])


SHOWN = 8  # names of raised layers that are printed


def budget(found: SearchResult) -> None:
    """What was raised to keep to the budget, what that costs, and every trial."""
    assert found.taken is not None
    trial = found.trials[found.taken]
    say(
        f"[bold]{found.target} {found.precision}[/]: {_measured(found, found.taken)}, {found.limit:g} allowed"
    )
    if trial.layers:
        names = ", ".join(trial.layers[:SHOWN]) + (", ..." if len(trial.layers) > SHOWN else "")
        say(f"  in float: {escape(names)}")
    trials(found)


def trials(found: SearchResult, where: Console = out) -> None:
    """One line for each set of raised layers that was tried."""
    rows = []
    for i, t in enumerate(found.trials):
        mark = "[green]taken[/]" if i == found.taken else ""
        cache = "cached" if found.cached[i] else ""
        share = f"{t.raised} of {found.layers}"
        rows.append([share, f"{t.macs:.1%}", str(len(t.weights)), f"{t.cost:.3g}", cache, mark])
    phrase = f"{found.bound.phrase}, {found.bound.unit}"
    columns(
        ("layers in float", "their MACs", "float weights", phrase, "", ""),
        rows,
        ("layers in float", "their MACs", "float weights", phrase),
        where,
    )


def _measured(found: SearchResult, index: int) -> str:
    score = found.scores[index]
    value = f"{found.bound.phrase} {found.trials[index].cost:.3g} {found.bound.unit}"
    if found.bound.unit == "points":
        value += f" (standard error {score.standard_error:.2f})"
    return f"{value} on {score.n} photos of {escape(found.source)}"


def choices(found: Sequence[Choice]) -> None:
    """The latencies that precision ``auto`` went by, and what it kept."""
    for choice in found:
        say(f"[bold]{choice.target}[/]: {escape(choice.why)}; {choice.precision} kept")
        rows = []
        for c in choice.candidates:
            ratio = "" if c.ratio is None else "{:.3f} ({:.3f}..{:.3f})".format(*c.ratio)
            size = f"{c.size_bytes / 1e6:.2f}"
            rows.append([c.precision, size, f"{c.p50_ms:.3f}", ratio, c.verdict or ""])
        columns(("precision", "MB", "p50 ms", "ratio", ""), rows, ("MB", "p50 ms", "ratio"))
