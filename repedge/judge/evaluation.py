"""Accuracy of an artifact or a model on photos, streamed in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from repedge import tasks
from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.judge.gallery import Gallery, Shown
from repedge.photos import images
from repedge.photos.photos import Batch, Photos, batches, bundled_photos, open_photos, spread
from repedge.tasks.base import Task, Truths
from repedge.tasks.comparison import Agreement
from repedge.tasks.figures import WithFigures
from repedge.tasks.resampling import Change, change

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
        figures: The task's figures against the float reference, by key; None without one. Where nobody knows
            the truth, the metrics with the reference's answers as the truth are among them, as ``agree_KEY``.
        sqnr_db: Of the worst output against the float reference; None without one.
        labelled: Images of which the truth is known.
        exact: The reference's own first metric, by ``KEY_float``; empty without a reference.
        lost: What of the first metric is lost from the reference; None where nobody knows.
        task: What the outputs mean.
        shown: The photos on which the answers differ most, if they were asked for.
        asked: What else a scorer has to say, such as how many classes an episode has.
        warnings: Why the artifact is not to be trusted.
    """

    n: int
    skipped: int
    metrics: dict[str, float | None]
    figures: dict[str, float | None]
    sqnr_db: float | None
    labelled: int = 0
    exact: dict[str, float | None] = field(default_factory=dict)
    lost: Change | None = None
    task: Task | None = field(default=None, compare=False)
    shown: tuple[Shown, ...] = ()
    asked: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def intervals(self) -> dict[str, list[float]]:
        """95 % confidence intervals, by key, of what is a share of images; of the drop in points."""
        metrics = tasks.intervals_json(self.metrics, self.labelled)
        drop = {} if self.lost is None else {"drop": [100 * self.lost.low, 100 * self.lost.high]}
        return {**metrics, **tasks.intervals_json(self.figures, self.n), **drop}

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge eval --json`` prints: the figures flat among the other keys."""
        return {
            "n": self.n,
            "skipped": self.skipped,
            **tasks.metrics_json(self.metrics),
            **tasks.figures_json(self.figures),
            **self.exact,
            **self.asked,
            "drop": None if self.lost is None else 100 * self.lost.value,
            "sqnr_db": self.sqnr_db,
            "labelled": self.labelled,
            "intervals": self.intervals,
            "warnings": list(self.warnings),
        }


class Duel:
    """A network and the float one, held against the truth; where nobody knows it, against float's answers.

    Args:
        task: What the outputs mean.
        known: Whether somebody knows the truth.

    Attributes:
        mine, exact: Of the two; None where the task has no metric.
        answered: Whether float's answers are the truth.
        photos: How many had one.
    """

    def __init__(self, task: Task, known: bool) -> None:
        self.task = task
        self.mine, self.exact = task.scorer(), task.scorer()
        self.answered = not known
        self.photos = 0

    def update(
        self, outputs: Sequence[np.ndarray], exact: Sequence[np.ndarray] | None, truths: Sequence[Any]
    ) -> None:
        """Add a batch: both networks' outputs [n, ...], and what is to be found in each photo or None."""
        if self.mine is None or self.exact is None:
            return
        if self.answered:
            answers = None if exact is None else self.task.as_truths(exact)
            truths = [None] * len(truths) if answers is None else answers
        known = [i for i, t in enumerate(truths) if t is not None]
        wanted = [truths[i] for i in known]
        self.photos += len(known)
        self.mine.update([y[known] for y in outputs], wanted)
        if exact is not None:
            self.exact.update([y[known] for y in exact], wanted)

    def metrics(self) -> dict[str, float | None]:
        """The task's metrics, by key; None where nobody knows the truth."""
        found = {} if self.mine is None or self.answered else self.mine.score()
        return {f.key: found.get(f.key) for f in self.task.metrics}

    def agreed(self) -> dict[str, float | None]:
        """The same, by ``agree_KEY``, with float's answers as the truth; empty where they are none."""
        if self.mine is None or not (self.answered and self.photos):
            return {}
        found = self.mine.score()
        return {f"{tasks.AGREE}{f.key}": found.get(f.key) for f in self.task.metrics}

    def lost(self) -> Change | None:
        """What is lost of the first metric; None where there is nothing to compare."""
        if self.mine is None or self.exact is None or not (self.photos and self.exact.score()):
            return None
        return change(self.exact, self.mine)


def evaluate(
    forward: Forward,
    task: Task,
    pre: Preprocess,
    folder: Any,
    *,
    reference: Forward | None = None,
    limit: int | None = None,
    split: str | None = None,
    show: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Evaluate ``forward`` on photos, against what the task finds to be the truth.

    Args:
        folder: The photos: a folder, .zip, .npz or iterable, see `repedge.photos.photos.open_photos`; None
            for bundled ones.
        split: Which part of a data set.
        show: Keep so many of the photos on which the answers differ most.

    Raises:
        UserError: No usable images, none of which anything is known, outputs of which nothing can be said,
            or a truth that the network can't give.
    """
    if task.scorer() is None and reference is None:
        raise UserError(
            f"eval has no figure for {task.describe()} alone; give a bundle, which carries a float reference"
        )
    if show and reference is None:
        raise UserError("--html holds an artifact against its float reference; give a bundle that has one")
    gallery = Gallery(task, show)
    photos, truth_of = _opened(task, pre, folder, split, reference is not None)
    indices = spread(photos.total, limit)
    agreement, duel = Agreement(task), Duel(task, truth_of is not None)
    done = skipped = 0
    for batch in batches(photos, indices, (pre,), BATCH, upright=upright(photos)):
        done += batch.tried
        skipped += len(batch.skipped)
        progress(done, len(indices))
        if not batch.names:
            continue
        pixels = batch.pixels[pre]
        inputs = images.normalise(pixels, pre)
        outputs, exact = forward(pixels, inputs), None
        if reference is not None:
            exact = reference(pixels, inputs)
            agreement.update(exact, outputs)
        truths = placed(task, batch, truth_of, pre)
        duel.update(outputs, exact, truths)
        if exact is not None:
            gallery.update(batch.names, pixels, outputs, exact, truths)
    n = done - skipped
    if n == 0:
        raise UserError(f"none of the {done} files in {photos.where} could be decoded")
    found = _accuracy(agreement, duel, n, skipped, reference is not None)
    return replace(found, task=task, shown=gallery.shown)


def _opened(
    task: Task, pre: Preprocess, folder: Any, split: str | None, paired: bool
) -> tuple[Photos, Truths | None]:
    """The photos, and what is to be found in them.

    Raises:
        UserError: There are none, or they are bundled ones of which nothing is known, and there is no
            reference either (``paired``).
    """
    if folder is not None:
        photos = open_photos(folder, pre, option="eval", truth=task.annotated, split=split)
        return photos, task.truths(photos)
    photos = bundled_photos(pre, task.labels)
    truth_of = task.truths(photos)
    if truth_of is None and not paired:
        raise UserError(
            "eval needs photos: of what is in the bundled ones this network knows nothing; name a folder, as "
            "in `repedge eval MODEL PHOTOS`"
        )
    return photos, truth_of


def _accuracy(agreement: Agreement, duel: Duel, n: int, skipped: int, paired: bool) -> Accuracy:
    task, exact = agreement.task, {}
    if paired and task.metrics:
        first = task.metrics[0].key
        scores = {} if duel.exact is None or duel.answered else duel.exact.score()
        exact = {f"{first}_float": scores.get(first)}
    figures = {key: value for key, value in agreement.figures().items() if key not in exact}
    return Accuracy(
        n=n,
        skipped=skipped,
        metrics=duel.metrics(),
        figures={**figures, **duel.agreed()},
        sqnr_db=agreement.sqnr_db if paired else None,
        labelled=0 if duel.answered else duel.photos,
        exact=exact,
        lost=duel.lost() if paired and not duel.answered else None,
        asked={} if duel.answered else getattr(duel.mine, "asked", dict)(),
    )


def placed(task: Task, batch: Batch, truth_of: Truths | None, pre: Preprocess) -> list[Any]:
    """What is to be found in each photo of a batch, as scorers take it; None where nobody knows."""
    truths = zip(batch.truths(truth_of), batch.views(pre), strict=True)
    return [None if truth is None else task.placed(truth, view) for truth, view in truths]


def upright(photos: Photos) -> bool:
    """Whether what is said of photos is said of them as their EXIF orientation turns them."""
    return photos.annotations is not None and photos.annotations.upright
