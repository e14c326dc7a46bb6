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

PHOTOS = 64
"""Photos whose candidates are held against each other; for detections all count."""

STEPS = 4.0
"""A score that never moves by so many steps of the integers is not seen by them."""

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
        visible: Least probability, of those that a class or map ever reaches, of which scores must answer.
        moving: Least deviation of numbers, as a share of them, that the precision can follow.
    """

    matched: float
    iou: float
    correlation: float
    shift: float
    visible: float
    moving: float


EXACT = Bounds(matched=0.9, iou=0.9, correlation=0.9, shift=0.1, visible=1e-3, moving=2.0**-7)
"""Of floats."""

ROUGH = Bounds(matched=0.5, iou=0.6, correlation=0.5, shift=0.3, visible=0.1, moving=2.0**-5)
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
        self._table = decode.cells(head)
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
            moving, follows = self._moves(moments)[k], moments.moving()[k].max() > bounds.moving
            if (moving.any() and follows and correlation < bounds.correlation) or _dead(moments, moving, k):
                found.append(
                    f"boxes of {_map(level.stride)} don't follow the photos as the float network's do: "
                    f"correlation {correlation:.2f}, {bounds.correlation:g} would be the least"
                )
            far = self._shift(moments.shift()[k]) / (level.stride or 1.0)
            if level.stride and far.max() > bounds.shift:
                found.append(
                    f"boxes of {_map(level.stride)} are shifted by {far.max():.2f} cells, {bounds.shift:g} "
                    "would be the most"
                )
        return found

    def _shift(self, difference: np.ndarray) -> np.ndarray:
        """How far centers are shifted, pixels [2], by the shift of a box's numbers; 0 where these are raw."""
        if self.head.coding not in ("corners", "center"):
            return np.zeros(2)
        center = difference[:2]
        if self.head.coding == "corners":
            center = (difference[:2] + difference[2:]) / 2
        height, width = self.head.size if self.head.unit == "relative" else (1, 1)
        return np.abs(center) * ([height, width] if self.head.transposed else [width, height])

    def _of_scores(self, kind: str, bounds: Bounds) -> list[str]:
        """Dead or exchanged classes and maps."""
        moments, found = self._kinds[kind], []
        seen = self._visible(moments, bounds)
        moving = self._moves(moments)
        dead = moving & moments.still()
        for k, level in enumerate(self.head.levels):
            wrong = seen[k].any() and moments.of_maps()[k] < bounds.correlation
            if wrong or _dead(moments, moving[k], k):
                found.append(
                    f"{kind} scores of {_map(level.stride)} don't follow the photos as the float network's "
                    f"do: correlation {moments.of_maps()[k]:.2f}, {bounds.correlation:g} would be the least"
                )
        if found or kind != "class":
            return found
        low = seen.any(0) & (moments.of_channels() < bounds.correlation)
        lifeless = np.flatnonzero(low | (dead | ~moving).all(0) & moving.any(0))
        if len(lifeless):
            which = ", ".join(map(str, lifeless[:5])) + (", ..." if len(lifeless) > 5 else "")
            found.append(
                f"scores of {len(lifeless)} of {len(low)} classes ({which}) don't follow the photos as the "
                "float network's do"
            )
        contrast = moments.contrast()
        if not found and len(low) > 1 and moments.apart() > bounds.moving and contrast < bounds.correlation:
            found.append(
                f"what tells classes apart is not what the float network tells them by: correlation "
                f"{contrast:.2f}, {bounds.correlation:g} would be the least"
            )
        return found

    def _visible(self, moments: Moments, bounds: Bounds) -> np.ndarray:
        """Channels of maps that reach a probability of which scores must answer, [maps, channels]."""
        high = moments.high
        if self.head.activation == "sigmoid":
            high = decode.sigmoid(high)
        seen: np.ndarray = (high >= bounds.visible) & self._moves(moments)
        return seen & (moments.moving() > bounds.moving)

    def _moves(self, moments: Moments) -> np.ndarray:
        """Channels of maps that move by more than steps of integers, or roundings, [maps, channels]."""
        least = max(STEPS * moments.grain, 1e-4)
        moves: np.ndarray = moments.high - moments.low > least
        return moves


def _dead(moments: Moments, moving: np.ndarray, k: int) -> bool:
    """Whether all that moves in a map of the float network is the same on every photo here."""
    return bool(moving.any() and moments.still()[k][moving].all())


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(iou(a[None], b[None])[0, 0])


def _map(stride: float) -> str:
    return f"stride {stride:g}" if stride else "its map"
