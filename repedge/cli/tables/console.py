"""Tables, progress and next-step hints for people. Everything on stderr but the tables."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from repedge import tasks
from repedge.tasks.base import Figure

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(line: str, where: Console = out) -> None:
    """Print a line with markup, left whole: the terminal wraps it, so that paths in it can be copied."""
    where.print(line, soft_wrap=True)


def warn(warnings: Sequence[str]) -> None:
    """Sentences on stderr, a line each."""
    for warning in warnings:
        say(f"[yellow]warning: {escape(warning)}[/]", err)


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


def titled(name: str, found: str) -> str:
    """The name, which the sentence may begin with, in bold, and the sentence."""
    rest = found.removeprefix(f"{name} ")
    return f"[bold]{escape(name)}[/]{': ' if rest == found else ' '}{escape(rest)}"


def shown(figures: Mapping[str, float | None]) -> list[tuple[Figure, float]]:
    """The first of a task's figures, the one for a line of text, if it is known."""
    first = [(tasks.figure(key), value) for key, value in figures.items()][:1]
    return [(figure, value) for figure, value in first if value is not None]


def cell(figure: Figure, value: float | None, n: int) -> str:
    """A figure of ``n`` images in a table."""
    if value is None:
        return "-"
    bounds = figure.bounds(value, n)
    return f"{value:.1%} ({bounds})" if bounds else figure.text(value, n)
