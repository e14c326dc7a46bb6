"""From a network's outputs to boxes, float32 in a stated order: apps in other languages repeat it.

Exponentials are taken in float64 and rounded to float32, so that every library of mathematics gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from repedge.tasks.boxes import MOST, OVERLAP, SCORE, Detections, nms
from repedge.tasks.heads.head import Head, Place

HALF, TWO = np.float32(0.5), np.float32(2)


@dataclass(frozen=True)
class Raw:
    """The numbers of all candidates as the network gives them, float32.

    Attributes:
        box: [n, candidates, 4 * bins].
        scores: [n, candidates, scores].
        objectness: [n, candidates]; None where there is none.
        labels: [n, candidates]; None where the class is still to be chosen.
    """

    box: np.ndarray
    scores: np.ndarray
    objectness: np.ndarray | None
    labels: np.ndarray | None


def gather(outputs: Sequence[np.ndarray], head: Head) -> Raw:
    """The numbers of all candidates, source after source.

    Args:
        outputs: Every output as the graph has it, [n, ...] each.
        head: Where they stand.
    """

    def column(kind: str) -> np.ndarray | None:
        if kind not in head.sources[0].places:
            return None
        return np.concatenate([rows(outputs, source.places[kind]) for source in head.sources], 1)

    box, scores = column("box"), column("class")
    assert box is not None
    assert scores is not None
    objectness, labels = column("objectness"), column("label")
    return Raw(
        box,
        scores,
        None if objectness is None else objectness[..., 0],
        None if labels is None else labels[..., 0],
    )


def rows(outputs: Sequence[np.ndarray], place: Place) -> np.ndarray:
    """A stretch of an output with the candidates as rows, float32 [n, candidates, stop - start].

    The numbers of a cell's boxes stand one after the other along the axis; all cells of the first box come
    first.
    """
    y = np.moveaxis(outputs[place.output], place.axis, -1)
    n, cells = len(y), int(np.prod(y.shape[1:-1]))
    y = y.reshape(n, cells, place.repeats, -1)[..., place.start : place.stop]
    return y.transpose(0, 2, 1, 3).reshape(n, place.repeats * cells, -1).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """In float64, rounded to float32."""
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def exp(x: np.ndarray) -> np.ndarray:
    """In float64, rounded to float32; infinite where that can't hold it."""
    with np.errstate(over="ignore"):
        return np.exp(x.astype(np.float64)).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis in float64, added up from the first to the last, rounded to float32."""
    with np.errstate(invalid="ignore"):  # of infinities
        e = np.exp((x - x.max(-1, keepdims=True)).astype(np.float64))
    return (e / e.cumsum(-1)[..., -1:]).astype(np.float32)


def probabilities(raw: Raw, head: Head) -> np.ndarray:
    """Of every class of every candidate, times the objectness, float32 [n, candidates, classes]."""
    scores = raw.scores
    if head.activation != "none":
        scores = softmax(scores) if head.activation == "softmax" else sigmoid(scores)
    if head.background is not None:
        scores = np.delete(scores, head.background, axis=-1)
    if raw.objectness is None:
        return scores
    return scores * (sigmoid(raw.objectness) if head.activation == "sigmoid" else raw.objectness)[..., None]


def scores_of(raw: Raw, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Score and class of every candidate: the best class, of equal ones the first, times the objectness.

    Returns:
        float32 [n, candidates] and int32 [n, candidates].
    """
    scores = softmax(raw.scores) if head.activation == "softmax" else raw.scores
    if head.background is not None:
        scores = np.delete(scores, head.background, axis=-1)
    if raw.labels is not None:
        finite = np.nan_to_num(raw.labels, nan=-1, posinf=-1, neginf=-1).clip(-1, 1 << 24)
        classes = np.rint(finite).astype(np.int32)
        best = scores[..., 0]
    else:
        classes = scores.argmax(-1).astype(np.int32)
        best = np.take_along_axis(scores, classes[..., None].astype(np.int64), -1)[..., 0]
    best = sigmoid(best) if head.activation == "sigmoid" else best
    if raw.objectness is not None:
        best = (sigmoid(raw.objectness) if head.activation == "sigmoid" else raw.objectness) * best
    return best, classes


def cells(head: Head) -> np.ndarray:
    """Of every candidate: column and row of its cell, stride, width and height of its anchor.

    Returns:
        float32 [candidates, 5]; what nobody knows is 0.
    """
    found = []
    for level in head.levels:
        boxes = max(1, len(level.anchors))
        i = np.arange(level.rows)
        cell = i % (level.rows // boxes)
        columns = max(1, level.columns)
        anchors = np.array(level.anchors or [(0.0, 0.0)])[i // (level.rows // boxes)]
        table = [cell % columns, cell // columns, np.full(level.rows, level.stride)]
        found.append(np.column_stack([*table, anchors]))
    return np.concatenate(found).astype(np.float32)


def corners(box: np.ndarray, table: np.ndarray, head: Head) -> np.ndarray:
    """Boxes of candidates.

    Args:
        box: Their numbers, float32 [k, 4 * bins].
        table: Their rows of `cells`.
        head: What the numbers are.

    Returns:
        Left, top, right, bottom in pixels of the input, float32 [k, 4].
    """
    if head.bins > 1:
        weights = softmax(box.reshape(-1, 4, head.bins))
        box = (weights * np.arange(head.bins, dtype=np.float32)).cumsum(-1, dtype=np.float32)[..., -1]
    if head.transposed:
        box = box[:, [1, 0, 3, 2]]
    cell, stride, anchor = table[:, :2], table[:, 2:3], table[:, 3:5]
    if head.coding == "corners":
        return box * _scale(head, stride)
    if head.coding == "distances":
        point = (cell + np.float32(head.offset)) * stride
        sides = box * _scale(head, stride)
        return np.concatenate([point - sides[:, :2], point + sides[:, 2:]], 1)
    if head.coding == "center":
        box = box * _scale(head, stride)
        center, side = box[:, :2], box[:, 2:]
    elif head.coding == "grid":
        center, side = (box[:, :2] + cell) * stride, exp(box[:, 2:]) * stride
    else:
        s = sigmoid(box) * TWO
        center, side = ((s[:, :2] - HALF) + cell) * stride, (s[:, 2:] * s[:, 2:]) * anchor
    half = side * HALF
    return np.concatenate([center - half, center + half], 1)


def _scale(head: Head, stride: np.ndarray) -> np.ndarray:
    """Pixels in a unit of each of four numbers, float32 [k or 1, 4]."""
    if head.unit == "relative":
        height, width = head.size
        return np.array([[width, height, width, height]], np.float32)
    return np.ones((1, 4), np.float32) if head.unit == "pixels" else np.tile(stride, 4)


def decode(
    outputs: Sequence[np.ndarray],
    head: Head,
    score: float = SCORE,
    overlap: float = OVERLAP,
    most: int = MOST,
) -> list[Detections]:
    """What the outputs find, image by image.

    Candidates with a score of ``score`` or more, whose box is finite, go into `repedge.tasks.boxes.nms`.

    Args:
        outputs: Every output as the graph has it, [n, ...] each.
        head: What they hold.
        score: Least score.
        overlap: Intersection over union over which a box is the same object; from 0 to 1.
        most: Detections in an image, at most.
    """
    raw, table = gather(outputs, head), cells(head)
    best, classes = scores_of(raw, head)
    found = []
    for i in range(len(best)):
        chosen = np.flatnonzero(best[i] >= np.float32(score))
        boxes = corners(raw.box[i, chosen], table[chosen], head)
        real = np.isfinite(boxes).all(1) & np.isfinite(best[i, chosen]) & (classes[i, chosen] >= 0)
        chosen, boxes = chosen[real], boxes[real]
        if head.suppressed:
            kept = np.argsort(-best[i, chosen], kind="stable")[:most]
        else:
            kept = nms(boxes, best[i, chosen], classes[i, chosen], overlap, most)
        found.append(Detections(boxes[kept], best[i, chosen[kept]], classes[i, chosen[kept]]))
    return found
