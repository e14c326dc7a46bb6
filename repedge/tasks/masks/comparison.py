"""How near a segmenter's map is to the float network's, and whether it is that map at all.

Integers may cost a map much of its SQNR, so that a mask that is off by a pixel, or two classes that changed
places, would hide in what quantizing costs. Such faults are looked for by what else the map could be: it is
held against the float map moved by a pixel, and each class against every other. No threshold on noise is in
that: whatever the noise, a map is nearest to itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from repedge.tasks.comparison import Comparison

CHANGED = 0.01
"""An image's map is another one where more of its pixels than this share are of another class."""

NEARER = 0.9
"""A map is another's if its square distance from that is less than this share of the one from its own."""
SWAPPED = 0.5
"""Two classes changed places if that lessens their square distance to this share."""

FLAT = 0.04
"""A class is dead whose scores vary less than this share of the variance that they should have."""
COUNTS = 0.01
"""Classes that vary less than this share of the classes' mean are not asked."""

SURE = 4.0
"""A pixel is sure if its best class leads by so many times the error of a score, of most classes."""
KEPT = 0.5
"""A class is lost if less than this share of its sure pixels keep it."""
RARELY = 0.1
"""And if less than this share of all of them does, where nobody knows which are sure."""
FEWEST = 32
"""Of fewer pixels of a class nothing is said."""
SOME = 256
"""Nor of fewer scores of a whole map."""

SAMPLED = 4096
"""Pixels of an image that classes are compared on."""
IMAGES = 256
"""Images that they are compared on."""
PROJECTIONS = 4
"""Mixtures of the classes that are held against moved ones."""


@dataclass
class Maps(Comparison):
    """What the comparisons of two maps have in common.

    Attributes:
        classes: Number of classes.
        labels: Their names; empty if they have none.
    """

    decision: ClassVar[str] = "the label map"

    classes: int = 2
    labels: tuple[str, ...] = ()
    _confusion: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _inner: int = 0
    _shifts: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))

    def count(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Add label maps, whole numbers [N, H, W] each."""
        if not self._confusion.size:
            self._confusion = np.zeros((self.classes, self.classes), np.int64)
        pairs = reference.ravel() * self.classes + actual.ravel()
        self._confusion += np.bincount(pairs, minlength=self.classes**2).reshape(self._confusion.shape)

    def move(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Add the distances of maps [N, K, H, W] from the reference's, and from it moved by a pixel."""
        inner = actual[:, :, 1:-1, 1:-1]
        self._inner += inner.size
        height, width = inner.shape[2:]
        for y in range(3):
            for x in range(3):
                moved = reference[:, :, y : y + height, x : x + width]
                self._shifts[y, x] += self.apart(inner, moved)

    def apart(self, a: np.ndarray, b: np.ndarray) -> float:
        """The distance of two maps [N, K, H, W]."""
        return float(((a - b) ** 2).sum())

    @property
    def agreement(self) -> float:
        """The share of pixels of the same class."""
        return float(np.trace(self._confusion)) / max(int(self._confusion.sum()), 1)

    def figures(self) -> Mapping[str, float]:
        """``pixel_agreement``, a share, and ``miou_float``: the mean over the classes that either map has."""
        both = np.diag(self._confusion)
        either = self._confusion.sum(0) + self._confusion.sum(1) - both
        seen = either > 0
        return {
            "pixel_agreement": self.agreement,
            "miou_float": float((both[seen] / either[seen]).mean()) if seen.any() else 1.0,
        }

    def faults(self) -> list[str]:
        """See `Comparison.faults`."""
        return [*self._moved(), *self.of_classes()]

    def of_classes(self) -> Iterator[str]:
        """What is wrong with single classes."""
        return iter(())

    def _moved(self) -> Iterator[str]:
        own = self._shifts[1, 1]
        y, x = (int(i) - 1 for i in np.unravel_index(self._shifts.argmin(), (3, 3)))
        if self._inner >= SOME and self._shifts[y + 1, x + 1] < NEARER * own:
            where = [w for w in (_side(y, "down", "up"), _side(x, "right", "left")) if w]
            yield f"the map is the float network's, moved {' and '.join(where)} by a pixel"

    def name_of(self, index: int) -> str:
        """What sentences call a class."""
        return f"{self.labels[index]!r}" if len(self.labels) == self.classes else str(index)


def _side(by: int, back: str, forth: str) -> str:
    return {-1: back, 0: "", 1: forth}[by]


@dataclass
class Scores(Maps):
    """The comparison of two maps of scores, [N, C, H, W]; of one channel, of scores of a mask.

    Attributes:
        threshold: From which on a score is of the mask, where there is one channel.
        flips: For each image the margin, in the reference, that more than `CHANGED` of the pixels lost; 0
            where fewer are of another class.
    """

    threshold: float = 0.0
    flips: list[float] = field(default_factory=list)
    _sampled: int = 0
    _moments: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    _sure: list[np.ndarray] = field(default_factory=list)

    def judge(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Count pixels that keep their class, and compare maps with moved ones and classes with classes."""
        if not np.isfinite(actual).all():
            return
        mix = _mixture(reference.shape[1])
        self.move(*(np.einsum("kc,nchw->nkhw", mix, y) for y in (reference, actual)))
        best, margin = self._best(reference)
        chosen, _ = self._best(actual)
        self.count(best, chosen)
        for one, other, lead, scores in zip(best, chosen, margin, reference, strict=True):
            off = one != other
            lost = lead[off] if self.classes == 2 else _lead(scores[:, off], other[off])
            most = int(CHANGED * one.size) + 1
            self.flips.append(float(np.partition(lost, -most)[-most]) if lost.size >= most else 0.0)
        for ref, act, one, other, lead in zip(reference, actual, best, chosen, margin, strict=True):
            if len(self._sure) < IMAGES:
                self._sample(ref, act, one, other, lead)

    def _best(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best class of each pixel, and by how much it leads: [N, H, W] each."""
        if scores.shape[1] == 1:
            over = scores[:, 0] - self.threshold
            return (over > 0).astype(np.int64), np.abs(over)
        two = np.partition(scores, -2, axis=1)[:, -2:]
        return scores.argmax(1), two[:, 1] - two[:, 0]

    def _sample(
        self, ref: np.ndarray, act: np.ndarray, best: np.ndarray, chosen: np.ndarray, lead: np.ndarray
    ) -> None:
        """Keep what `of_classes` asks of one image."""
        step = -(-best.size // SAMPLED)
        ref, act = (y.reshape(len(y), -1)[:, ::step] for y in (ref, act))
        self._moments.append((ref.sum(1), act.sum(1), act @ ref.T, (ref**2).sum(1), (act**2).sum(1)))
        kept = (best == chosen).ravel()[::step]
        self._sure.append(np.stack([best.ravel()[::step], kept, lead.ravel()[::step]]))
        self._sampled += ref.shape[1]

    def changed(self, tie: float) -> int:
        """Images of which more than `CHANGED` of the pixels are of another class, ties left out."""
        return sum(margin > tie * self.max_abs_ref for margin in self.flips)

    def of_classes(self) -> Iterator[str]:
        """Classes that changed places, that are always the same, and that are no longer found."""
        if not self._moments:
            return
        n = self._sampled
        ref, act, both, refs, acts = (np.sum(m, 0) for m in zip(*self._moments, strict=True))
        variance, got = refs / n - (ref / n) ** 2, acts / n - (act / n) ** 2
        asked = variance >= COUNTS * variance.mean()
        yield from self._swapped(both / n - np.outer(act, ref) / n**2, variance, got, asked)
        for c in np.flatnonzero(asked & (variance > 0) & (got < FLAT * variance)).tolist():
            yield f"class {self.name_of(c)} is dead: its scores hardly vary, where the float network's do"
        yield from self._lost(float(np.median(np.maximum(refs + acts - 2 * np.diag(both), 0) / n) ** 0.5))

    def _swapped(
        self, shared: np.ndarray, variance: np.ndarray, got: np.ndarray, asked: np.ndarray
    ) -> Iterator[str]:
        """By the covariances of every class with every float one, [C, C]."""
        away = got[:, None] + variance[None] - 2 * shared
        own = np.diag(away)[:, None] + np.diag(away)[None]
        worse = (away + away.T < SWAPPED * own) & asked[:, None] & asked[None]
        for a, b in np.argwhere(np.triu(worse, 1)).tolist():
            yield f"classes {self.name_of(a)} and {self.name_of(b)} have changed places"

    def _lost(self, error: float) -> Iterator[str]:
        best, kept, lead = np.concatenate(self._sure, 1)
        sure = lead > SURE * error
        for c in np.unique(best[sure]).astype(int):
            of = sure & (best == c)
            if of.sum() >= FEWEST and kept[of].mean() < KEPT:
                yield (
                    f"class {self.name_of(c)} is lost: it keeps {kept[of].mean():.0%} of the pixels that the "
                    "float network is sure of"
                )


def _lead(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """By how much the best of scores [C, n] leads over the chosen ones, [n]."""
    return scores.max(0, initial=-np.inf) - scores[chosen, np.arange(scores.shape[1])]


def _mixture(channels: int) -> np.ndarray:
    """Rows that mix channels, [K, C]: random signs, the same at each call; no mixture of few channels."""
    if channels <= PROJECTIONS:
        return np.eye(channels)
    return np.random.default_rng(0).choice((-1.0, 1.0), (PROJECTIONS, channels))


@dataclass
class Ids(Maps):
    """The comparison of two maps of classes, [N, H, W] or [N, 1, H, W].

    Numbers of classes have no distance: the share of pixels that are wrong is the relative error.
    """

    def judge(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Count pixels that keep their class, and compare maps with moved ones."""
        if not np.isfinite(actual).all():
            return
        last = self.classes - 1
        maps = [
            np.clip(np.rint(y), 0, last).astype(np.int64).reshape(len(y), *y.shape[-2:])
            for y in (reference, actual)
        ]
        self.count(maps[0], maps[1])
        self.move(maps[0][:, None], maps[1][:, None])

    def apart(self, a: np.ndarray, b: np.ndarray) -> float:
        """The number of pixels that differ."""
        return float((a != b).sum())

    @property
    def sqnr_db(self) -> float:
        """-20 log10 of the share of pixels that are of another class, at most 200."""
        if not self.finite:
            return float("-inf")
        wrong = 1 - self.agreement
        return 200.0 if wrong <= 0 else min(200.0, float(-20 * np.log10(wrong)))

    @property
    def max_rel_err(self) -> float:
        """The share of pixels that are of another class."""
        return 1 - self.agreement

    def of_classes(self) -> Iterator[str]:
        """Classes that are no longer found."""
        if not self._confusion.size:
            return
        total = self._confusion.sum(1)
        kept = np.diag(self._confusion) / np.maximum(total, 1)
        for c in np.flatnonzero((total >= max(FEWEST, COUNTS * total.sum())) & (kept < RARELY)).tolist():
            yield f"class {self.name_of(c)} is lost: it keeps {kept[c]:.0%} of the float network's pixels"


def known(labels: Sequence[str], classes: int) -> tuple[str, ...]:
    """A name for each class, or none; of a mask may be named what it is of, alone."""
    if classes == 2 and len(labels) == 1:
        return ("background", labels[0])
    return tuple(labels) if len(labels) == classes else ()
