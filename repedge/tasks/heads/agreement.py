"""Whether an artifact finds what the float network finds, and answers to photos as that does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from repedge.tasks.boxes import SCORE, Detections, iou, match
from repedge.tasks.comparison import Answers
from repedge.tasks.heads import decode
from repedge.tasks.heads.head import Head
from repedge.tasks.heads.moments import Moments

FAINT = 0.1
"""Least score that another network's detection is matched with, so that a score next to the threshold, which
another rounding takes to the other side, is no fault."""

FEW = 8
"""Fewer detections than these judge nothing: one of them may be wrong for no reason."""

SEEN = 4.0
"""Of candidates whose scores add up to less than this boxes are not judged apart from those of background."""

PHOTOS = 64
"""Photos whose candidates are held against each other; for detections all count."""

BEST = 20
"""Detections of a photo, the best whatever their score, that count where a network sorts what it finds."""


@dataclass(frozen=True)
class Bounds:
    """What an artifact must reach.

    Attributes:
        matched: Share of the detections of each network that the other has, too.
        iou: Mean intersection over union of such pairs.
        correlation: Of what candidates say beyond what they say of every photo; see `Moments`.
        shift: Of boxes on the average, in strides.
        growth: Of their sizes on the average, as a logarithm.
        visible: Least probability, of those that a class or map ever reaches, of which scores must answer.
        moving: Least deviation of numbers, as a share of them, that the precision can follow.
    """

    matched: float
    iou: float
    correlation: float
    shift: float
    growth: float
    visible: float
    moving: float


EXACT = Bounds(matched=0.9, iou=0.9, correlation=0.9, shift=0.1, growth=0.02, visible=1e-3, moving=2.0**-7)
"""Of floats."""

ROUGH = Bounds(matched=0.5, iou=0.6, correlation=0.5, shift=0.5, growth=0.25, visible=0.1, moving=2.0**-5)
"""Of integers: this finds faults, a metric judges the loss."""


class Found(Answers):
    """The comparison of two detectors' answers.

    Args:
        head: What the outputs hold.
    """

    def __init__(self, head: Head) -> None:
        self.head = head
        starts = np.array([0, *accumulate(level.rows for level in head.levels)][:-1])
        self._kinds = {kind: Moments(starts) for kind in ("box", "objectness", "class")}
        self._starts = starts
        self._table = decode.cells(head)
        self._best_score = np.zeros((len(starts), 0))
        self._placed = np.zeros((head.candidates, 4))
        self._weighed = np.zeros((len(starts), 3))
        self._float = self._own = self._pairs = 0
        self._kept = self._backed = 0
        self._best = self._best_kept = 0
        self._iou = self._score = 0.0

    def update(self, reference: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> None:
        """See `Answers.update`."""
        found = [decode.decode(y, self.head, FAINT) for y in (reference, actual)]
        for want, got in zip(*found, strict=True):
            self._count(want, got)
        if self.head.suppressed:
            ranked = [decode.decode(y, self.head, 0.0) for y in (reference, actual)]
            for want, got in zip(*ranked, strict=True):
                self._best += len(want[:BEST])
                self._best_kept += len(match(want[:BEST], got)[0])
        elif self._kinds["box"].n < PHOTOS:
            self._look(*(decode.gather(y, self.head) for y in (reference, actual)))

    def _count(self, want: Detections, got: Detections) -> None:
        """Add the detections of one photo."""
        sure, mine = want[want.scores >= SCORE], got[got.scores >= SCORE]
        left, right = match(mine, sure)
        pairs = zip(mine.boxes[left], sure.boxes[right], strict=True)
        self._float += len(sure)
        self._own += len(mine)
        self._pairs += len(left)
        self._kept += len(match(sure, got)[0])
        self._backed += len(match(mine, want)[0])
        self._iou += sum(_iou(a, b) for a, b in pairs)
        self._score += float(np.abs(mine.scores[left] - sure.scores[right]).sum())

    def _look(self, want: decode.Raw, got: decode.Raw) -> None:
        """Add the candidates of some photos."""
        self._kinds["box"].update(want.box, got.box)
        self._kinds["class"].update(want.scores, got.scores)
        if want.objectness is not None and got.objectness is not None:
            self._kinds["objectness"].update(want.objectness[..., None], got.objectness[..., None])
        scores = decode.probabilities(want, self.head)
        best = np.maximum.reduceat(scores.max(0), self._starts)
        self._best_score = np.maximum(self._best_score, best) if self._best_score.size else best
        for ours, theirs, weights in zip(want.box, got.box, scores.max(-1).astype(np.float64), strict=True):
            apart = _apart(*(decode.corners(b, self._table, self.head) for b in (ours, theirs)))
            self._placed += apart
            weighed = weights[:, None] * np.nan_to_num(np.column_stack([np.ones(len(apart)), apart[:, :2]]))
            self._weighed += np.add.reduceat(weighed, self._starts)

    def figures(self) -> Mapping[str, float]:
        """Of detections with a score of `SCORE`, matched as `match` does; without any, how many."""
        found = {"matched.n": float(self._float)}
        if self._float + self._own:
            found["matched.f1"] = 2 * self._pairs / (self._float + self._own)
        if self._float:
            found["matched.recall"] = self._pairs / self._float
        if self._own:
            found["matched.precision"] = self._pairs / self._own
        if self._pairs:
            found["matched.mean_iou"] = self._iou / self._pairs
            found["matched.score_err"] = self._score / self._pairs
        return found

    def faults(self, exact: bool) -> list[str]:
        """See `Answers.faults`."""
        bounds = EXACT if exact else ROUGH
        found = self._of_detections(bounds)
        if self._kinds["box"].n > 1:
            found += self._of_boxes(bounds)
            for kind in ("objectness", "class"):
                if self._kinds[kind].n:
                    found += self._of_scores(kind, bounds)
        return found

    def remarks(self) -> list[str]:
        """See `Answers.remarks`."""
        found = []
        if self._float < FEW:
            found.append(
                f"on these photos the float network finds {self._float} objects with a score of {SCORE:g}: "
                "judged by its candidates alone; with --images, judge on photos that show some"
            )
        if self._kinds["box"].n == 1:
            found.append("one photo does not show whether all classes and maps answer; judge on more")
        return found

    def _of_detections(self, bounds: Bounds) -> list[str]:
        found = []
        if self._float >= FEW and self._kept < bounds.matched * self._float:
            found.append(
                f"{self._kept} of the {self._float} objects that the float network finds are found, "
                f"{bounds.matched:.0%} would be the least"
            )
        if self._own >= FEW and self._backed < bounds.matched * self._own:
            found.append(
                f"of the {self._own} objects that are found the float network finds {self._backed}, "
                f"{bounds.matched:.0%} would be the least"
            )
        if self._pairs >= FEW and self._iou < bounds.iou * self._pairs:
            found.append(
                f"boxes overlap those of the float network by an IoU of {self._iou / self._pairs:.2f} in the "
                f"mean, {bounds.iou:g} would be the least"
            )
        if self._best >= FEW and self._best_kept < bounds.matched * self._best:
            found.append(
                f"{self._best_kept} of the {self._best} best boxes of the float network are found, "
                f"{bounds.matched:.0%} would be the least"
            )
        return found

    def _of_boxes(self, bounds: Bounds) -> list[str]:
        moments, found = self._kinds["box"], []
        for k, (level, correlation) in enumerate(zip(self.head.levels, moments.of_maps(), strict=True)):
            follows = moments.moving()[k].max() <= bounds.moving or correlation >= bounds.correlation
            if not follows or moments.dead()[k].all():
                found.append(
                    f"boxes of {_map(level.stride)} don't follow the photos as the float network's do: "
                    f"correlation {correlation:.2f}, {bounds.correlation:g} would be the least"
                )
            end = self._starts[k] + level.rows
            x, y, w, h = np.nanmedian(self._placed[self._starts[k] : end] / moments.n, axis=0)
            far, growth = max(abs(x), abs(y)) / (level.stride or np.inf), max(abs(w), abs(h))
            total, *moved = self._weighed[k]
            if total >= SEEN:  # of what is found, as background says little of boxes
                far = max(far, *(abs(v) / total / (level.stride or np.inf) for v in moved))
            if far > bounds.shift:
                found.append(
                    f"boxes of {_map(level.stride)} are shifted by {far:.2f} cells, {bounds.shift:g} "
                    "would be the most"
                )
            if growth > bounds.growth:
                found.append(
                    f"boxes of {_map(level.stride)} are of another size by a factor of {np.exp(growth):.2f}, "
                    f"{np.exp(bounds.growth):.2f} would be the most"
                )
        return found

    def _of_scores(self, kind: str, bounds: Bounds) -> list[str]:
        """Dead or exchanged classes and maps."""
        moments, found = self._kinds[kind], []
        seen, dead = self._visible(kind, bounds), moments.dead()
        for k, level in enumerate(self.head.levels):
            correlation = moments.of_maps()[k]
            if (seen[k].any() and correlation < bounds.correlation) or dead[k].all():
                found.append(
                    f"{kind} scores of {_map(level.stride)} don't follow the photos as the float network's "
                    f"do: correlation {correlation:.2f}, {bounds.correlation:g} would be the least"
                )
        if found or kind != "class":
            return found
        wrong = seen.any(0) & (moments.of_channels() < bounds.correlation)
        lifeless = np.flatnonzero(wrong | (dead.any(0) & (dead | ~moments.large()).all(0)))
        if len(lifeless):
            which = ", ".join(map(str, lifeless[:5])) + (", ..." if len(lifeless) > 5 else "")
            found.append(
                f"scores of {len(lifeless)} of {len(wrong)} classes ({which}) don't follow the photos as the "
                "float network's do"
            )
        contrast = moments.contrast()
        if not found and len(wrong) > 1 and moments.apart() > bounds.moving and contrast < bounds.correlation:
            found.append(
                f"what tells classes apart is not what the float network tells them by: correlation "
                f"{contrast:.2f}, {bounds.correlation:g} would be the least"
            )
        return found

    def _visible(self, kind: str, bounds: Bounds) -> np.ndarray:
        """Channels of maps whose scores come so high that they must answer, [maps, channels]."""
        moments = self._kinds[kind]
        best = self._best_score
        if kind == "objectness":
            best = best.max(1, keepdims=True)
        elif self.head.background is not None:
            best = np.insert(best, self.head.background, best.max(1), axis=1)
        seen: np.ndarray = (best >= bounds.visible) & moments.large() & (moments.moving() > bounds.moving)
        return seen


def _apart(want: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Of boxes [k, 4]: how far centers are apart, pixels, and logarithms of sizes, float64 [k, 4].

    Sizes under a pixel are one.
    """
    a, b = want.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        centers = (b[:, :2] + b[:, 2:] - a[:, :2] - a[:, 2:]) / 2
        sizes = [np.maximum(box[:, 2:] - box[:, :2], 1.0) for box in (a, b)]
        return np.concatenate([centers, np.log(sizes[1] / sizes[0])], 1)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(iou(a[None], b[None])[0, 0])


def _map(stride: float) -> str:
    return f"stride {stride:g}" if stride else "its map"
