"""Average precision of a detector, in NumPy: for a look while it learns; `repedge eval` has the last word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POINTS = np.linspace(0, 1, 101)
"""Recalls at which COCO's average precision reads the curve."""


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes [n, 4] and [m, 4] (left, top, right, bottom) -> [n, m]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = (high - low).clip(0).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b)]
    return inter / np.maximum(areas[0][:, None] + areas[1][None] - inter, 1e-9)


def suppressed(boxes: np.ndarray, scores: np.ndarray, iou: float = 0.6, most: int = 100) -> np.ndarray:
    """Indices of what non-maximum suppression leaves of boxes of one class, best first."""
    order = scores.argsort(kind="stable")[::-1][:300]
    same = overlaps(boxes[order], boxes[order]) > iou
    kept: list[int] = []
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            kept.append(i)
            alive &= ~same[i]
    return order[kept[:most]]


def average_precision(
    found: Sequence[tuple[np.ndarray, np.ndarray]], truths: Sequence[np.ndarray], iou: float
) -> float:
    """Of one class: area under precision over recall as COCO reads it, every photo's best answers first.

    Args:
        found: Boxes [n, 4] and scores [n] of each photo, best first.
        truths: Boxes [m, 4] of each photo.
        iou: From which on an answer is right.
    """
    hits, scores = [], []
    for (boxes, confidence), wanted in zip(found, truths, strict=True):
        free = np.ones(len(wanted), bool)
        for row, score in zip(overlaps(boxes, wanted), confidence, strict=True):
            best = np.where(free, row, -1)
            hit = bool(len(wanted)) and best.max() >= iou
            if hit:
                free[best.argmax()] = False
            hits.append(hit)
            scores.append(score)
    total = sum(map(len, truths))
    if not hits or not total:
        return 0.0
    right = np.array(hits)[np.argsort(-np.array(scores), kind="stable")].cumsum()
    recall, precision = right / total, right / np.arange(1, len(right) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    at = recall.searchsorted(POINTS - 1e-9)
    return float(np.append(highest, 0)[at].mean())


def mean_average_precision(
    answers: Sequence[np.ndarray], truths: Sequence[tuple[np.ndarray, np.ndarray]], classes: int
) -> dict[str, float]:
    """``map50`` and ``map50_95`` of YOLOv5's answers.

    Args:
        answers: Of each photo [boxes, 5 + classes]: centre, size, objectness, class scores.
        truths: Boxes [m, 4] and classes [m] of each photo.
        classes: Their number.
    """
    levels: list[list[float]] = []
    for c in range(classes):
        found = [best(a, c) for a in answers]
        own = [boxes[kinds == c] for boxes, kinds in truths]
        levels.append([average_precision(found, own, iou) for iou in np.linspace(0.5, 0.95, 10)])
    each = {f"ap50[{c}]": row[0] for c, row in enumerate(levels)}
    table = np.array(levels)
    return {"map50": float(table[:, 0].mean()), "map50_95": float(table.mean()), **each}


def best(answer: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of a class in one photo, after non-maximum suppression."""
    scores = answer[:, 4] * answer[:, 5 + c]
    rows = np.flatnonzero(scores > 0.001)
    centre, half, scores = answer[rows, :2], answer[rows, 2:4] / 2, scores[rows]
    boxes = np.concatenate((centre - half, centre + half), 1)
    kept = suppressed(boxes, scores)
    return boxes[kept], scores[kept]
