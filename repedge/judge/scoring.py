"""Photos that artifacts are judged on: decoded once, with what the float reference makes of them."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repedge.config import InputKind, Preprocess
from repedge.errors import CheckFailed, UserError
from repedge.judge.evaluation import BATCH, Duel, placed, upright
from repedge.photos import images
from repedge.photos import photos as door
from repedge.photos.tensors import Tensors
from repedge.tasks.base import Limit, Task
from repedge.tasks.comparison import Agreement
from repedge.tasks.figures import WithFigures

FEWEST = 16
"""Fewer photos than this judge nothing."""

HELD = 2 * 2**30
"""Bytes of the float network's answers that are held in memory: one map of scores may have 20 MiB."""

Run = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Score(WithFigures):
    """An artifact against the float reference on the same photos.

    Attributes:
        n: Photos.
        standard_error: Of the drop (paired) where the truth is known, or else of the disagreement, points;
            by bootstrap over the photos where the metric is no mean over them.
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
        """What is bounded, in its unit.

        Raises:
            UserError: There is nothing to be found in the photos, of which it would be a share.
        """
        value = {**self.metrics, **self.figures}[limit.measure]
        if value is None:
            raise UserError(
                f"the accuracy budget can't be told on these {self.n} photos: there is nothing to be found "
                "in them; give others with --eval-data"
            )
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
class Given:
    """Photos to judge on.

    Attributes:
        source: Where they come from, in words.
        read: Gives (uint8 [H, W, C], what is to be found in it or None), anew at each call; what can't be
            read is left out.
        skipped: Name -> why it was left out; filled by reading.
    """

    source: str
    read: Callable[[], Iterator[tuple[np.ndarray, Any]]]
    skipped: dict[str, str] = field(default_factory=dict)


def affordable(task: Task) -> int:
    """How many photos' answers memory holds, of outputs whose shapes are known: `FEWEST` at the least."""
    size = 4 * sum(math.prod(output.shape) for output in task.outputs)
    return max(FEWEST, HELD // size)


def with_truth(folder: Any, task: Task, pre: Preprocess, count: int) -> Given:
    """Photos of a folder, .zip or .npz, spread evenly over it; where the truth of some is known, only those.

    Raises:
        UserError: See `repedge.photos.photos.open_photos` and `repedge.tasks.base.Task.truths`.
    """
    photos = door.open_photos(folder, pre, option="--eval-data", truth=task.annotated)
    truth_of = task.truths(photos)
    known = door.spread(photos.total)
    if photos.annotations is not None and photos.names is not None:
        known = [i for i in known if photos.annotations.photos[photos.names[i]] is not None]
    elif truth_of is not None and photos.names is not None:
        known = [i for i in known if truth_of(photos.names[i], None) is not None] or known
    indices = [known[k] for k in door.spread(len(known), count)]
    skipped: dict[str, str] = {}

    def read() -> Iterator[tuple[np.ndarray, Any]]:
        for batch in door.batches(photos, indices, (pre,), BATCH, upright=upright(photos)):
            skipped.update(batch.skipped)
            yield from zip(batch.pixels[pre], placed(task, batch, truth_of, pre), strict=True)

    return Given(photos.name, read, skipped)


def held_out(photos: door.Photos, used: Set[str], pre: Preprocess, seed: int, count: int) -> Given:
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

    def read() -> Iterator[tuple[np.ndarray, Any]]:
        given = 0
        for batch in door.batches(photos, wanted, (pre,), BATCH, upright=True):
            skipped.update(batch.skipped)
            for array, sha256 in zip(batch.pixels[pre], batch.hashes, strict=True):
                if sha256 not in used:
                    given += 1
                    yield array, None
                if given == count:
                    return

    return Given(f"{photos.name}, those not calibrated on", read, skipped)


class ScoringSet:
    """Photos in a temporary file, the reference's answers in memory.

    Args:
        photos: Where they come from; read once.
        pre: The model's preprocessing.
        reference: The float graph, an ``.onnx`` file.
        task: What its outputs mean.

    Attributes:
        source: Where the photos came from.
        digest: sha256 of pixels and truths.

    Raises:
        UserError: Too few photos, or a truth that the network can't give.
    """

    def __init__(
        self, photos: Given, pre: Preprocess, reference: Path, task: Task, tensors: Tensors | None = None
    ) -> None:
        """Decode the photos, and run the float reference on them and on what goes with them in turn."""
        from repedge.graph.run import Session

        tensors = tensors or Tensors()
        self.task = task
        self._pre = pre
        self._shape = (*pre.size, pre.channels)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the set
        digest = hashlib.sha256()
        self._known: list[Any] = []
        for array, truth in photos.read():
            self._file.write(np.ascontiguousarray(array).tobytes())
            digest.update(array.tobytes())
            self._known.append(truth)
        self.source = door.with_skipped(photos.source, photos.skipped)
        for truth in self._known:
            _digest(digest, truth)
        for name, array in tensors.arrays.items():
            digest.update(name.encode() + array.tobytes())
        self.digest = digest.hexdigest()
        if len(self) < FEWEST:
            raise UserError(
                f"an accuracy budget needs {FEWEST} photos or more that can be read, and {self.source} has "
                f"{len(self)}"
            )
        run = tensors.along(Session(reference).run)
        self._answers = [run(images.normalise(x, pre)) for x in self._batches()]
        self._check()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def has_truth(self) -> bool:
        """Whether what is to be found is known of every photo."""
        return bool(self._known) and all(t is not None for t in self._known)

    def _check(self) -> None:
        """Find out before any artifact is built whether the network can give the truths."""
        scorer = self.task.scorer()
        if self.has_truth and scorer is not None:
            for answers, truths in zip(self._answers, self._truths(), strict=True):
                scorer.update(answers, truths)

    def _truths(self) -> Iterator[list[Any]]:
        """What is to be found in the photos, batch by batch."""
        for start in range(0, len(self), BATCH):
            yield self._known[start : start + BATCH]

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
        agreement, duel = Agreement(self.task), Duel(self.task, self.has_truth)
        distance = 0.0
        for pixels, exact, truths in zip(self._batches(), self._answers, self._truths(), strict=True):
            outputs = run(pixels if kind == "uint8" else images.normalise(pixels, self._pre))
            agreement.update(exact, outputs)
            duel.update(outputs, exact, truths)
            distance += self._distance(outputs, exact)
        if not agreement.finite:
            raise CheckFailed("the integer artifact gives NaN or infinite outputs on real images")
        figures = self._bounded(
            {_key(self.task.divergence): distance / len(self), **agreement.figures(), **duel.agreed()}
        )
        return Score(
            n=len(self),
            standard_error=100 * self._error(duel, figures),
            metrics=self._metrics(duel),
            figures=figures,
            sqnr_db=agreement.sqnr_db,
        )

    def _distance(self, outputs: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
        """The sum over a batch of the task's distance, where no figure of its comparisons is one."""
        far = self.task.divergence
        if far is None or far.figure in [f.key for f in self.task.figures]:
            return 0.0
        import torch

        got, want = ([torch.from_numpy(np.asarray(y, np.float32)) for y in side] for side in (outputs, exact))
        found = self.task.nearness(got, want)
        return 0.0 if found is None else float(found.double().sum())

    def _error(self, duel: Duel, figures: Mapping[str, float | None]) -> float:
        """Standard error of what is bounded, as a share."""
        lost = duel.lost()
        if lost is not None:
            return lost.error
        lacking = self.task.disagreement
        points = None if lacking is None else figures[lacking.measure]
        share = min(max((points or 0.0) / 100, 0.0), 1.0)
        return math.sqrt(share * (1 - share) / len(self))

    def _bounded(self, found: Mapping[str, float | None]) -> dict[str, float | None]:
        """Figures under the names of the limits that are made of them."""
        lacking, far = self.task.disagreement, self.task.divergence
        named: dict[str, float | None] = {}
        if lacking is not None:
            agreed = found.get(lacking.figure)
            named[lacking.measure] = None if agreed is None else 100 * (1 - agreed)
        if far is not None:
            named[far.measure] = found.get(far.figure)
        return named

    def _metrics(self, duel: Duel) -> dict[str, float | None]:
        """Metrics of both networks and the drop, points."""
        if self.task.drop is None or duel.mine is None or duel.exact is None:
            return {}
        key, measure = self.task.drop.figure, self.task.drop.measure
        lost = None if duel.answered else duel.lost()
        if lost is None:
            return {key: None, f"float_{key}": None, measure: None}
        mine, exact = duel.mine.score()[key], duel.exact.score()[key]
        return {key: mine, f"float_{key}": exact, measure: 100 * lost.value}


def _key(limit: Limit | None) -> str:
    return "" if limit is None else limit.figure


def _digest(digest: Any, truth: Any) -> None:
    """Add a truth to a digest: the numbers of its arrays, all of them, which their text is not."""
    if isinstance(truth, np.ndarray):
        digest.update(f"{truth.dtype}{truth.shape}".encode() + truth.tobytes())
    elif is_dataclass(truth):
        for one in fields(truth):
            _digest(digest, getattr(truth, one.name))
    else:
        digest.update(repr(truth).encode())
