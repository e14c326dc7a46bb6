"""Photos that artifacts are judged on: decoded once, with what the float reference makes of them."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from repedge.config import InputKind, Preprocess
from repedge.errors import CheckFailed, UserError
from repedge.judge.evaluation import BATCH, hits
from repedge.photos import images
from repedge.photos import photos as door
from repedge.tasks.comparison import Comparison
from repedge.tasks.labels import class_indices

FEWEST = 16
"""Fewer photos than this judge nothing."""

DROP, DISAGREEMENT, KL = "top1_drop", "disagreement", "kl"

Run = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Score:
    """An artifact against the float reference on the same photos.

    Attributes:
        n: Photos.
        top1, float_top1: Shares from 0 to 1 of the photos whose label is best; None without labels.
        top1_drop: ``float_top1 - top1`` in points; None without labels.
        standard_error: Of ``top1_drop`` (paired), or else of ``disagreement``; points.
        disagreement: Points of photos whose best class is not the reference's.
        kl: Mean KL divergence from the reference's softmax, nats.
        sqnr_db: Of the logits, from -999 to 200 dB.
    """

    n: int
    top1: float | None
    float_top1: float | None
    top1_drop: float | None
    standard_error: float
    disagreement: float
    kl: float
    sqnr_db: float

    def of(self, measure: str) -> float:
        """The figure of that name."""
        value = {DROP: self.top1_drop, DISAGREEMENT: self.disagreement, KL: self.kl}[measure]
        assert value is not None
        return value


@dataclass(frozen=True)
class Photos:
    """Where photos come from.

    Attributes:
        source: In words.
        read: Gives (uint8 [H, W, C], label or None), anew at each call; what can't be read is left out.
        skipped: Name -> why it was left out; filled by reading.
    """

    source: str
    read: Callable[[], Iterator[tuple[np.ndarray, int | None]]]
    skipped: dict[str, str] = field(default_factory=dict)


def labelled(folder: Any, labels: Sequence[str], pre: Preprocess, count: int) -> Photos:
    """Photos of a folder, .zip or .npz, spread evenly over it; where some have labels, only those.

    Raises:
        UserError: See `repedge.photos.photos.open_photos` and `repedge.tasks.labels.class_indices`.
    """
    photos = door.open_photos(folder, pre, option="--eval-data")
    class_of = class_indices(photos, labels)
    known = door.spread(photos.total)
    if class_of is not None and photos.names is not None:
        known = [i for i in known if class_of(photos.names[i], None) is not None] or known
    indices = [known[k] for k in door.spread(len(known), count)]
    skipped: dict[str, str] = {}

    def read() -> Iterator[tuple[np.ndarray, int | None]]:
        for batch in door.batches(photos, indices, (pre,), BATCH):
            skipped.update(batch.skipped)
            yield from zip(batch.pixels[pre], batch.truths(class_of), strict=True)

    return Photos(photos.name, read, skipped)


def held_out(photos: door.Photos, used: Set[str], pre: Preprocess, seed: int, count: int) -> Photos:
    """Photos of the calibration source that were not calibrated on, in the order of its seed.

    Args:
        photos: The calibration source, opened.
        used: sha256 of each photo that was calibrated on.
        pre: The model's preprocessing.
        seed: Of the calibration's choice.
        count: At most this many.

    Raises:
        UserError: The source is a stream, or was used up.
    """
    left = 0 if photos.total is None else photos.total - len(used)
    if photos.total is None or left < FEWEST:
        raise UserError(
            f"the accuracy budget needs photos that were not calibrated on, and {photos.name} has "
            f"{'none' if photos.total is None else left} left; lower --calib-count, add photos, or pass "
            "--eval-data FOLDER"
        )
    order = np.random.default_rng(seed).permutation(photos.total)[: count + 2 * len(used)]
    wanted = sorted(int(i) for i in order) if photos.ordered else [int(i) for i in order]
    skipped: dict[str, str] = {}

    def read() -> Iterator[tuple[np.ndarray, int | None]]:
        given = 0
        for batch in door.batches(photos, wanted, (pre,), BATCH, upright=True):
            skipped.update(batch.skipped)
            for array, sha256 in zip(batch.pixels[pre], batch.hashes, strict=True):
                if sha256 not in used:
                    given += 1
                    yield array, None
                if given == count:
                    return

    return Photos(f"{photos.name}, those not calibrated on", read, skipped)


class Exam:
    """Photos in a temporary file, the reference's logits in memory.

    Args:
        photos: Where they come from; read once.
        pre: The model's preprocessing.
        reference: The float graph, an ``.onnx`` file.

    Attributes:
        source: Where the photos came from.
        digest: sha256 of pixels and labels.

    Raises:
        UserError: Too few photos, outputs that are no logits, or a label beyond the last class.
    """

    def __init__(self, photos: Photos, pre: Preprocess, reference: Path) -> None:
        from repedge.graph.run import Session

        self._pre = pre
        self._shape = (*pre.size, pre.channels)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the exam
        digest, labels = hashlib.sha256(), []
        for array, label in photos.read():
            self._file.write(np.ascontiguousarray(array).tobytes())
            digest.update(array.tobytes())
            labels.append(-1 if label is None else label)
        self.source = door.with_skipped(photos.source, photos.skipped)
        self._labels = np.array(labels, np.int64)
        digest.update(self._labels.tobytes())
        self.digest = digest.hexdigest()
        if len(self) < FEWEST:
            raise UserError(
                f"an accuracy budget needs {FEWEST} photos or more that can be read, and {self.source} has "
                f"{len(self)}"
            )
        session = Session(reference)
        outputs = [session.run(images.normalise(x, pre))[0] for x in self._batches()]
        self._logits = np.concatenate(outputs)
        if self._logits.ndim != 2 or self._logits.shape[1] < 2:
            raise UserError(
                f"an accuracy budget ranks classes, but the output has shape {list(self._logits.shape[1:])}; "
                "name layers with --keep-float for this model"
            )
        if self.has_labels:
            hits(self._logits, self._labels)  # says which label is no class

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def has_labels(self) -> bool:
        """Whether every photo has a label."""
        return bool(len(self._labels)) and bool((self._labels >= 0).all())

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
        comparison, answers = Comparison(), []
        for i, pixels in enumerate(self._batches()):
            logits = run(pixels if kind == "uint8" else images.normalise(pixels, self._pre))[0]
            comparison.update(self._logits[i * BATCH : i * BATCH + len(pixels)], logits)
            answers.append(logits.argmax(1))
        if not comparison.finite:
            raise CheckFailed("the integer artifact gives NaN or infinite outputs on real images")
        mine, reference = np.concatenate(answers), self._logits.argmax(1)
        differ = float((mine != reference).mean())
        assert comparison.kl is not None
        top1 = float_top1 = drop = None
        variance = differ * (1 - differ)
        if self.has_labels:
            won, lost = mine == self._labels, reference == self._labels
            top1, float_top1 = float(won.mean()), float(lost.mean())
            change = lost.astype(np.float64) - won
            drop, variance = 100 * float(change.mean()), float(change.var())
        return Score(
            n=len(self),
            top1=top1,
            float_top1=float_top1,
            top1_drop=drop,
            standard_error=100 * math.sqrt(variance / len(self)),
            disagreement=100 * differ,
            kl=comparison.kl,
            sqnr_db=max(-999.0, comparison.sqnr_db),
        )
