"""Accuracy of an artifact or a model on a folder of images, streamed in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repedge import tasks
from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import images
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
    """

    n: int
    skipped: int
    metrics: dict[str, float | None]
    figures: dict[str, float | None]
    sqnr_db: float | None

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge eval --json`` prints: the figures flat among the other keys."""
        return {
            "n": self.n,
            "skipped": self.skipped,
            **tasks.metrics_json(self.metrics),
            **tasks.figures_json(self.figures),
            "sqnr_db": self.sqnr_db,
        }


def evaluate(
    forward: Forward,
    task: Task,
    pre: Preprocess,
    folder: Path,
    *,
    reference: Forward | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Evaluate ``forward`` on the images of ``folder``, against what the task finds to be the truth.

    Raises:
        UserError: No usable images, outputs of which nothing can be said, or a truth that the network can't
            give.
    """
    scorer = task.scorer()
    if scorer is None and reference is None:
        raise UserError(
            f"eval has no figure for {task.describe()} alone; give a bundle, which carries a float reference"
        )
    samples = images.folder_samples(folder, task.labels)
    if limit is not None:
        samples = images.spread(samples, limit)
    agreement = Agreement(task)
    done = skipped = 0
    for start in range(0, len(samples), BATCH):
        chosen, pixels = _decode(samples[start : start + BATCH], pre)
        done += len(samples[start : start + BATCH])
        skipped += len(samples[start : start + BATCH]) - len(chosen)
        progress(done, len(samples))
        if not chosen:
            continue
        inputs = images.normalise(pixels, pre)
        outputs = forward(pixels, inputs)
        if reference is not None:
            agreement.update(reference(pixels, inputs), outputs)
        if scorer is not None:
            known = [i for i, s in enumerate(chosen) if s.label is not None]
            scorer.update([y[known] for y in outputs], [chosen[i].label for i in known])
    n = len(samples) - skipped
    if n == 0:
        raise UserError(f"none of the {len(samples)} files in {folder} could be decoded")
    scores = {} if scorer is None else scorer.score()
    return Accuracy(
        n=n,
        skipped=skipped,
        metrics={f.key: scores.get(f.key) for f in task.metrics},
        figures=agreement.figures(),
        sqnr_db=None if reference is None else agreement.sqnr_db,
    )


def _decode(samples: list[images.Sample], pre: Preprocess) -> tuple[list[images.Sample], np.ndarray]:
    good, arrays = [], []
    for sample in samples:
        try:
            arrays.append(images.pixels(sample.load(), pre))
        except UserError:
            continue
        good.append(sample)
    return good, np.stack(arrays) if arrays else np.empty((0, *pre.size, pre.channels), np.uint8)
