"""Accuracy of an artifact or a model on photos, streamed in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from repedge import tasks
from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import images
from repedge.photos.photos import batches, open_photos, spread
from repedge.tasks.base import Task
from repedge.tasks.comparison import Agreement
from repedge.tasks.figures import WithFigures

BATCH = 16

Forward = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]
"""(pixels uint8 [n, H, W, C], inputs float32 [n, C, H, W]) -> every output, float32 [n, ...] each."""


@dataclass(frozen=True)
class Accuracy(WithFigures):
    """What an artifact or a model gives on a set of images.

    Attributes:
        n: Images evaluated.
        skipped: Files that could not be decoded.
        metrics: The task's figures against the truth, by key; None where nobody knows it.
        figures: The task's figures against the float reference, by key; None without one.
        sqnr_db: Of the worst output against the float reference; None without one.
        labelled: Images of which the truth is known.
        warnings: Why the artifact is not to be trusted.
    """

    n: int
    skipped: int
    metrics: dict[str, float | None]
    figures: dict[str, float | None]
    sqnr_db: float | None
    labelled: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def intervals(self) -> dict[str, list[float]]:
        """95 % confidence intervals of the metrics and figures that are shares of images, by key."""
        metrics = tasks.intervals_json(self.metrics, self.labelled)
        return {**metrics, **tasks.intervals_json(self.figures, self.n)}

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge eval --json`` prints: the figures flat among the other keys."""
        return {
            "n": self.n,
            "skipped": self.skipped,
            **tasks.metrics_json(self.metrics),
            **tasks.figures_json(self.figures),
            "sqnr_db": self.sqnr_db,
            "labelled": self.labelled,
            "intervals": self.intervals,
            "warnings": list(self.warnings),
        }


def evaluate(
    forward: Forward,
    task: Task,
    pre: Preprocess,
    folder: Any,
    *,
    reference: Forward | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Evaluate ``forward`` on photos, against what the task finds to be the truth.

    Args:
        folder: The photos: a folder, .zip, .npz or iterable, see `repedge.photos.photos.open_photos`.

    Raises:
        UserError: No usable images, outputs of which nothing can be said, or a truth that the network can't
            give.
    """
    scorer = task.scorer()
    if scorer is None and reference is None:
        raise UserError(
            f"eval has no figure for {task.describe()} alone; give a bundle, which carries a float reference"
        )
    photos = open_photos(folder, pre, option="eval")
    indices = spread(photos.total, limit)
    truth_of = task.truths(photos)
    agreement = Agreement(task)
    done = skipped = labelled = 0
    for batch in batches(photos, indices, (pre,), BATCH):
        done += batch.tried
        skipped += len(batch.skipped)
        progress(done, len(indices))
        if not batch.names:
            continue
        pixels = batch.pixels[pre]
        inputs = images.normalise(pixels, pre)
        outputs = forward(pixels, inputs)
        if reference is not None:
            agreement.update(reference(pixels, inputs), outputs)
        if scorer is not None:
            truths = batch.truths(truth_of)
            known = [i for i, t in enumerate(truths) if t is not None]
            labelled += len(known)
            scorer.update([y[known] for y in outputs], [truths[i] for i in known])
    n = done - skipped
    if n == 0:
        raise UserError(f"none of the {done} files in {photos.where} could be decoded")
    scores = {} if scorer is None else scorer.score()
    return Accuracy(
        n=n,
        skipped=skipped,
        metrics={f.key: scores.get(f.key) for f in task.metrics},
        figures=agreement.figures(),
        sqnr_db=None if reference is None else agreement.sqnr_db,
        labelled=labelled,
    )
