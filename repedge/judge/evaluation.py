"""Accuracy of an artifact or a model on photos, streamed in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import images
from repedge.photos.photos import batches, open_photos, spread
from repedge.tasks.comparison import Comparison
from repedge.tasks.labels import class_indices

BATCH = 16

Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(pixels uint8 [n, H, W, C], inputs float32 [n, C, H, W]) -> logits float32 [n, classes]."""


@dataclass(frozen=True)
class Accuracy:
    """Shares are fractions from 0 to 1; None where there are no labels or no reference.

    Attributes:
        n: Images evaluated.
        skipped: Files that could not be decoded.
        top1, top5: Share of images whose label is (among the five) best.
        agree_top1, sqnr_db, kl: Against the float reference.
    """

    n: int
    skipped: int
    top1: float | None
    top5: float | None
    agree_top1: float | None
    sqnr_db: float | None
    kl: float | None

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge eval --json`` prints."""
        return dict(self.__dict__)


def evaluate(
    forward: Forward,
    pre: Preprocess,
    folder: Any,
    *,
    reference: Forward | None = None,
    labels: tuple[str, ...] = (),
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Evaluate ``forward`` on photos.

    Args:
        folder: The photos: a folder, .zip, .npz or iterable, see `repedge.photos.photos.open_photos`; for
            their labels see `repedge.tasks.labels.class_indices`.

    Raises:
        UserError: No usable images, outputs that are no logits, or a label beyond the last class.
    """
    photos = open_photos(folder, pre, option="eval")
    indices = spread(photos.total, limit)
    class_of = class_indices(photos, labels)
    comparison = Comparison()
    hits1 = hits5 = counted = done = skipped = 0
    for batch in batches(photos, indices, (pre,), BATCH):
        done += batch.tried
        skipped += len(batch.skipped)
        progress(done, len(indices))
        if not batch.names:
            continue
        pixels = batch.pixels[pre]
        inputs = images.normalise(pixels, pre)
        logits = forward(pixels, inputs)
        if logits.ndim != 2:
            raise UserError(
                f"eval ranks classes, but the output has shape {logits.shape[1:]}; use verify for this model"
            )
        if reference is not None:
            comparison.update(reference(pixels, inputs), logits)
        truths = batch.truths(class_of)
        known = [i for i, t in enumerate(truths) if t is not None]
        counted += len(known)
        one, five = hits(logits[known], np.array([truths[i] for i in known], dtype=np.int64))
        hits1, hits5 = hits1 + one, hits5 + five
    n = done - skipped
    if n == 0:
        raise UserError(f"none of the {done} files in {photos.where} could be decoded")
    have = reference is not None
    return Accuracy(
        n=n,
        skipped=skipped,
        top1=hits1 / counted if counted else None,
        top5=hits5 / counted if counted else None,
        agree_top1=comparison.agree_top1 if have else None,
        sqnr_db=comparison.sqnr_db if have else None,
        kl=comparison.kl if have else None,
    )


def hits(logits: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """How many labels are best, and among the five best, of their row."""
    if not len(labels):
        return 0, 0
    worst = int(labels.min()) if labels.min() < 0 else int(labels.max())
    if not 0 <= worst < logits.shape[1]:
        raise UserError(
            f"a label is {worst}, but the model has {logits.shape[1]} classes; check labels.json or the "
            "class folders"
        )
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return int((order[:, 0] == labels).sum()), int((order == labels[:, None]).any(1).sum())
