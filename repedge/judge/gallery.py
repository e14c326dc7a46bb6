"""The photos on which an artifact and the float network differ most, and a page that shows them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repedge import tasks
from repedge.errors import UserError
from repedge.html import style
from repedge.tasks import drawing
from repedge.tasks.base import Task
from repedge.version import __version__

if TYPE_CHECKING:
    from repedge.judge.evaluation import Accuracy

MOST = 24
"""Photos on a page."""


@dataclass(frozen=True)
class Shown:
    """A photo, and what is made of it.

    Attributes:
        name: Of the photo.
        apart: How far the two answers are apart; see `Task.apart`.
        pixels: As the network gets it, uint8 [H, W, C].
        panels: (whose answer, the answer as `Task.draw` takes it).
    """

    name: str
    apart: float
    pixels: np.ndarray
    panels: tuple[tuple[str, Any], ...]


class Gallery:
    """Keeps the photos that differ most, the most different first.

    Args:
        task: What the outputs mean.
        most: How many.

    Raises:
        UserError: The task draws nothing.
    """

    def __init__(self, task: Task, most: int = MOST) -> None:
        if most and type(task).draw is Task.draw:
            raise UserError(f"--html has nothing to draw for the task {task.name!r} ({task.title})")
        self._task, self._most = task, most
        self._kept: list[tuple[float, int, Shown]] = []
        self._seen = 0

    def update(
        self, names: Sequence[str], pixels: np.ndarray, outputs: Sequence[np.ndarray],
        exact: Sequence[np.ndarray], truths: Sequence[Any],
    ) -> None:  # fmt: skip
        """Look at a batch: its photos, both networks' outputs, and what is to be found in each or None."""
        if not self._most:
            return
        for i, apart in enumerate(self._task.apart(outputs, exact)):
            self._seen += 1
            if len(self._kept) == self._most and apart <= self._kept[0][0]:
                continue
            mine, first = (self._task.results([y[i : i + 1] for y in side])[0] for side in (outputs, exact))
            truth = () if truths[i] is None else (("truth", truths[i]),)
            panels = (*truth, ("float", first), ("artifact", mine))
            shown = Shown(names[i], float(apart), pixels[i].copy(), panels)
            push = heapq.heappushpop if len(self._kept) == self._most else heapq.heappush
            push(self._kept, (float(apart), -self._seen, shown))

    @property
    def shown(self) -> tuple[Shown, ...]:
        """The photos."""
        return tuple(s for _, _, s in sorted(self._kept, key=lambda kept: kept[:2], reverse=True))


def page(name: str, found: Accuracy, source: str) -> str:
    """The page's HTML.

    Args:
        name: What was evaluated.
        found: What was found; its photos are shown.
        source: Where the photos came from.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    task = found.task
    assert task is not None
    photos = [_photo(task, s, f"p{i}") for i, s in enumerate(found.shown)]
    return environment.get_template("gallery.html.jinja").render(
        style=Markup(style()),
        title=f"{name} on {source}",
        version=__version__,
        found=found,
        rows=figures(found),
        legend=task.legend(),
        photos=photos,
        columns=max((len(p["panels"]) for p in photos), default=2),
    )


def _photo(task: Task, s: Shown, name: str) -> dict[str, Any]:
    """A photo and its panels as the page wants them."""
    from markupsafe import Markup

    height, width = s.pixels.shape[:2]
    return {
        "name": s.name,
        "apart": task.apart_phrase.format(s.apart),
        "photo": Markup(drawing.photo(s.pixels, name)),
        "panels": [
            (whose, Markup(drawing.picture(name, (height, width), task.draw(answer, (height, width)))))
            for whose, answer in s.panels
        ],
    }


def figures(found: Accuracy) -> list[tuple[str, str]]:
    """What was found, a row each: its name, its value for people."""
    rows = []
    for key, value in found.metrics.items():
        figure = tasks.figure(key)
        rows.append((figure.phrase or figure.title, figure.text(value, found.labelled)))
    if found.asked:
        low, high = found.asked["ci95"]
        what = "{episodes} of {ways} classes by {shots} of each".format(**found.asked)
        rows.append(("episodes", f"{what} ({low:.2%} to {high:.2%})"))
    for key, value in found.exact.items():
        figure = tasks.figure(key.removesuffix("_float"))
        if value is not None:
            rows.append((f"{figure.title} of float", figure.text(value)))
    if found.lost is not None:
        points = (100 * v for v in (found.lost.value, found.lost.low, found.lost.high))
        rows.append(("lost", "{:.2f} points ({:.2f} to {:.2f})".format(*points)))
    if found.sqnr_db is not None:
        rows.append(("SQNR", f"{found.sqnr_db:.1f} dB"))
    for key, value in found.figures.items():
        figure = tasks.figure(key)
        if found.sqnr_db is None:  # nothing that it could be near to
            return [*rows, (figure.phrase or figure.title, "no reference")]
        if value is not None or figure.unit == "share":
            rows.append((figure.phrase or figure.title, figure.text(value, found.n)))
    return rows
