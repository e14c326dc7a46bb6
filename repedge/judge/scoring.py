"""Photos that artifacts are judged on: decoded once, with what the float reference makes of them."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from repedge.config import InputKind, Preprocess
from repedge.errors import CheckFailed, UserError
from repedge.judge.evaluation import BATCH
from repedge.photos import images
from repedge.tasks.base import Limit, Scorer, Task
from repedge.tasks.comparison import Agreement
from repedge.tasks.figures import WithFigures

if TYPE_CHECKING:
    from repedge.compiler.quantization import Calibration

FEWEST = 16
"""Fewer photos than this judge nothing."""

Run = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Score(WithFigures):
    """An artifact against the float reference on the same photos.

    Attributes:
        n: Photos.
        standard_error: Of the drop (paired) where the truth is known, or else of the disagreement, points.
        metrics: The task's first metric, the float network's as ``float_KEY``, and the drop, points; None
            where nobody knows the truth.
        figures: Against the float network, under the names of the limits that they can be bounded by.
        sqnr_db: Of the worst output, from -999 to 200 dB.
    """

    n: int
    standard_error: float
    metrics: dict[str, float | None]
    figures: dict[str, float | None]
    sqnr_db: float

    def of(self, limit: Limit) -> float:
        """What is bounded, in its unit."""
        value = {**self.metrics, **self.figures}[limit.measure]
        assert value is not None
        return value

    def as_json(self) -> dict[str, Any]:
        """The manifest's ``score``."""
        return {
            "n": self.n,
            **self.metrics,
            "standard_error": self.standard_error,
            **self.figures,
            "sqnr_db": self.sqnr_db,
        }


@dataclass(frozen=True)
class Photos:
    """Where photos come from.

    Attributes:
        source: In words.
        read: Gives (uint8 [H, W, C], label or None), anew at each call; what can't be read is left out.
    """

    source: str
    read: Callable[[], Iterator[tuple[np.ndarray, int | None]]]


def labelled(folder: Path, labels: Sequence[str], pre: Preprocess, count: int) -> Photos:
    """Photos of a folder; where some have labels, only those.

    Raises:
        UserError: See `repedge.photos.images.folder_samples`.
    """
    samples = images.folder_samples(folder, labels)
    if any(s.label is not None for s in samples):
        samples = [s for s in samples if s.label is not None]

    def read() -> Iterator[tuple[np.ndarray, int | None]]:
        for sample in images.spread(samples, count):
            try:
                yield images.pixels(sample.load(), pre), sample.label
            except UserError:
                continue

    return Photos(folder.name or str(folder), read)


def held_out(calibration: Calibration, pre: Preprocess, count: int) -> Photos:
    """Photos of the calibration source that were not calibrated on, in the order of its seed.

    Raises:
        UserError: The source is a stream, or was used up.
    """
    from repedge.photos.choice import to_pixels
    from repedge.photos.sources import open_source

    used = set(calibration.images(pre).record.files.values())
    source = open_source(calibration.source, pre, calibration.seed)
    left = 0 if source.total is None else source.total - len(used)
    if source.total is None or left < FEWEST:
        raise UserError(
            f"the accuracy budget needs photos that were not calibrated on, and {source.name} has "
            f"{'none' if source.total is None else left} left; lower --calib-count, add photos, or pass "
            "--eval-data FOLDER"
        )
    order = np.random.default_rng(calibration.seed).permutation(source.total)[: count + 2 * len(used)]
    wanted = sorted(int(i) for i in order) if source.ordered else [int(i) for i in order]

    def read() -> Iterator[tuple[np.ndarray, int | None]]:
        given = 0
        for _, item in source.read(wanted):
            if given == count:
                return
            if item.content is None or item.sha256 in used:
                continue
            given += 1
            if isinstance(item.content, Image.Image):
                yield images.pixels(item.content, pre), None
            else:
                rgb = np.rint(np.clip(to_pixels(item.content[None], pre)[0], 0, 255))
                yield rgb.transpose(1, 2, 0).astype(np.uint8), None

    return Photos(f"{source.name}, those not calibrated on", read)


class ScoringSet:
    """Photos in a temporary file, the reference's answers in memory.

    Args:
        photos: Where they come from; read once.
        pre: The model's preprocessing.
        reference: The float graph, an ``.onnx`` file.
        task: What its outputs mean.

    Attributes:
        source: Where the photos came from.
        digest: sha256 of pixels and labels.

    Raises:
        UserError: Too few photos, or a truth that the network can't give.
    """

    def __init__(self, photos: Photos, pre: Preprocess, reference: Path, task: Task) -> None:
        from repedge.graph.run import Session

        self.source = photos.source
        self.task = task
        self._pre = pre
        self._shape = (*pre.size, pre.channels)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the set
        digest, labels = hashlib.sha256(), []
        for array, label in photos.read():
            self._file.write(np.ascontiguousarray(array).tobytes())
            digest.update(array.tobytes())
            labels.append(-1 if label is None else label)
        self._labels = np.array(labels, np.int64)
        digest.update(self._labels.tobytes())
        self.digest = digest.hexdigest()
        if len(self) < FEWEST:
            raise UserError(
                f"an accuracy budget needs {FEWEST} photos or more that can be read, and {self.source} has "
                f"{len(self)}"
            )
        session = Session(reference)
        self._answers = [session.run(images.normalise(x, pre)) for x in self._batches()]
        self._float_hits: np.ndarray | None = None
        self._float_metrics: dict[str, float] = {}
        scorer = task.scorer()
        if self.has_labels and scorer is not None:
            for answers, truths in zip(self._answers, self._truths(), strict=True):
                scorer.update(answers, truths)  # says which label is no class
            self._float_hits, self._float_metrics = scorer.hits(), scorer.score()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def has_labels(self) -> bool:
        """Whether every photo has a label."""
        return bool(len(self._labels)) and bool((self._labels >= 0).all())

    def _truths(self) -> Iterator[list[int]]:
        """What is to be found in the photos, batch by batch."""
        for start in range(0, len(self), BATCH):
            yield self._labels[start : start + BATCH].tolist()

    def _batches(self) -> Iterator[np.ndarray]:
        """Pixels uint8 [n, H, W, C]."""
        size = int(np.prod(self._shape))
        self._file.seek(0)
        for start in range(0, len(self), BATCH):
            n = min(BATCH, len(self) - start)
            yield np.frombuffer(self._file.read(n * size), np.uint8).reshape(n, *self._shape)

    def score(self, run: Run, kind: InputKind) -> Score:
        """Run an artifact on every photo.

        Raises:
            CheckFailed: It gives NaN or infinite outputs.
        """
        agreement, scorer = Agreement(self.task), self.task.scorer()
        for pixels, exact, truths in zip(self._batches(), self._answers, self._truths(), strict=True):
            outputs = run(pixels if kind == "uint8" else images.normalise(pixels, self._pre))
            agreement.update(exact, outputs)
            if scorer is not None and self._float_hits is not None:
                scorer.update(outputs, truths)
        if not agreement.finite:
            raise CheckFailed("the integer artifact gives NaN or infinite outputs on real images")
        figures = self._bounded(agreement.figures())
        metrics, spread = self._metrics(scorer)
        if self._float_hits is None:
            lacking = self.task.disagreement
            points = None if lacking is None else figures[lacking.measure]
            share = min(max((points or 0.0) / 100, 0.0), 1.0)
            spread = share * (1 - share)
        return Score(
            n=len(self),
            standard_error=100 * math.sqrt(spread / len(self)),
            metrics=metrics,
            figures=figures,
            sqnr_db=agreement.sqnr_db,
        )

    def _bounded(self, found: Mapping[str, float | None]) -> dict[str, float | None]:
        """Figures under the names of the limits that are made of them."""
        lacking, far = self.task.disagreement, self.task.divergence
        named: dict[str, float | None] = {}
        if lacking is not None:
            agreed = found[lacking.figure]
            named[lacking.measure] = None if agreed is None else 100 * (1 - agreed)
        if far is not None:
            named[far.measure] = found[far.figure]
        return named

    def _metrics(self, scorer: Scorer | None) -> tuple[dict[str, float | None], float]:
        """Metrics of both networks and the drop, points, with the variance of what a photo adds to it."""
        if self.task.drop is None or scorer is None:
            return {}, 0.0
        key, measure = self.task.drop.figure, self.task.drop.measure
        if self._float_hits is None:
            return {key: None, f"float_{key}": None, measure: None}, 0.0
        change = self._float_hits - scorer.hits()
        mine, exact = scorer.score()[key], self._float_metrics[key]
        drop = 100 * float(change.mean())
        return {key: mine, f"float_{key}": exact, measure: drop}, float(change.var())
