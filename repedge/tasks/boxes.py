"""Boxes: what a detector found, what is there to be found, and how the two are held against each other.

All arithmetic is in float32 and in the order that is written here, each product and each sum rounded on its
own (no fused multiply-add), for apps in other languages repeat it bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repedge.tasks.view import View

SCORE = 0.25
"""Least score of a detection, where nobody says another."""

OVERLAP = 0.5
"""Intersection over union from which on two boxes are of one object, where nobody says another."""

MOST = 300
"""Detections in an image, at most."""

CANDIDATES = 30000
"""Of more candidates than these only the best go into `nms`."""


@dataclass(frozen=True)
class Detections:
    """What was found in one image, the best first.

    Attributes:
        boxes: Left, top, right, bottom in pixels of the network's input, float32 [n, 4].
        scores: From 0 to 1, descending, float32 [n].
        classes: Index of each one's class, int32 [n].
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: slice | np.ndarray) -> Detections:
        return Detections(self.boxes[chosen], self.scores[chosen], self.classes[chosen])


@dataclass(frozen=True)
class Objects:
    """What is to be found in one image.

    Attributes:
        boxes: Left, top, right, bottom in pixels of the network's input, float32 [n, 4].
        classes: Index of each one's class, int32 [n].
        ignored: Those that neither count as missed nor make a detection wrong, bool [n].
    """

    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every two boxes; 0 where both are empty.

    Widths and heights below 0 count as 0. The union is ``(area a + area b) - intersection``.

    Args:
        a: Left, top, right, bottom, float32 [n, 4].
        b: Likewise, [m, 4].

    Returns:
        float32 [n, m].
    """
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.maximum(sides, np.float32(0))
    both = sides[..., 0] * sides[..., 1]
    union = (_areas(a)[:, None] + _areas(b)[None, :]) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], np.float32(0))
    return sides[:, 0] * sides[:, 1]


def nms(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, overlap: float = OVERLAP, most: int = MOST
) -> np.ndarray:
    """Non-maximum suppression, class by class: which candidates stay, the best first.

    Candidates are taken by descending score, equal ones by ascending index. One stays unless its `iou` with
    one of its class that stayed is over ``overlap``; the first ``most`` that stay are the answer.

    Args:
        boxes: Left, top, right, bottom, float32 [n, 4].
        scores: float32 [n], no NaN.
        classes: Integers [n].
        overlap: From 0 to 1.
        most: Stay at most.

    Returns:
        Indices, int64 [k].
    """
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")[:CANDIDATES]
    boxes, classes = np.asarray(boxes, np.float32)[order], np.asarray(classes)[order]
    limit = np.float32(overlap)
    kept: list[int] = []
    left = np.arange(len(order))
    while len(left) and len(kept) < most:
        first, left = left[0], left[1:]
        kept.append(first)
        near = (iou(boxes[first : first + 1], boxes[left])[0] > limit) & (classes[left] == classes[first])
        left = left[~near]
    return order[np.array(kept, np.int64)]


def match(
    found: Detections, wanted: Detections | Objects, overlap: float = OVERLAP
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of detections and objects of the same class, each in one pair at most.

    The best detection chooses first, of the objects that are left the one with the largest `iou`, which
    must be ``overlap`` or more; of equal ones the first.

    Returns:
        Index in ``found`` and index in ``wanted`` of each pair, int64 [k] each, by ascending first.
    """
    overlaps = iou(found.boxes, wanted.boxes)
    overlaps[found.classes[:, None] != wanted.classes[None, :]] = -1
    pairs: list[tuple[int, int]] = []
    for i in range(len(found) if len(wanted) else 0):
        j = int(overlaps[i].argmax())
        if overlaps[i, j] >= np.float32(overlap):
            overlaps[:, j] = -1
            pairs.append((i, j))
    chosen = np.array(pairs, np.int64).reshape(-1, 2)
    return chosen[:, 0], chosen[:, 1]


def to_photo(found: Detections, view: View) -> Detections:
    """Boxes in pixels of the photo, cut off at its edges; what lies wholly beside it is left out.

    ``(x - left) * (width of the photo / width that it was resized to)``.
    """
    sizes, corner = np.array(view.photo * 2, np.float32), np.array([view.left, view.top] * 2, np.float32)
    moved = (found.boxes - corner) * (sizes / np.array(view.scaled * 2, np.float32))
    boxes = np.minimum(np.maximum(moved, np.float32(0)), sizes)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Detections(boxes[kept], found.scores[kept], found.classes[kept])
